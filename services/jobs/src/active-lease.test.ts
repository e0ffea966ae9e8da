import { hostname } from "node:os";
import { ManualClock, seededRandom } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { ActiveLease } from "./active-lease.ts";
import { SimQueue } from "./testing/sim-queue.ts";

describe("ActiveLease", () => {
  it("is had at once where nobody has it, and where its holder is a dead process of this machine", async () => {
    const world = leases();
    expect(await world.acquire("first").had()).toBe(true);
    world.queue.records.clear();
    world.held({ host: hostname(), pid: 2 ** 22 + 1 }); // above the greatest that Linux gives
    expect(await world.acquire("second").had()).toBe(true);
  });

  it("is taken over from a holder elsewhere that has not renewed it for six seconds of the watcher's clock", async () => {
    const world = leases();
    world.held({ host: "elsewhere", pid: 1 });
    const watcher = world.acquire("watcher");
    await world.pass(6_000);
    expect(await watcher.had()).toBe(false);
    await world.pass(4_000);
    expect(await watcher.had()).toBe(true);
  });

  it("is not taken from a holder that renews it, and is at once when that one lets go", async () => {
    const world = leases();
    const first = world.acquire("first");
    await world.pass(100);
    const second = world.acquire("second");
    await world.pass(60_000);
    expect([await first.had(), await second.had()]).toEqual([true, false]);
    await first.lease.release();
    await world.pass(2_000);
    expect([await second.had(), world.lost]).toEqual([true, []]);
  });

  it("goes to one of several that find it lapsed in the same moment", async () => {
    const world = leases();
    world.held({ host: "elsewhere", pid: 1 });
    const all = ["a", "b", "c"].map((name) => world.acquire(name));
    await world.pass(30_000);
    const had = await Promise.all(all.map((each) => each.had()));
    expect(had.filter(Boolean)).toHaveLength(1);
    expect(world.lost).toEqual([]);
  });

  it("is told to be lost where somebody else took it, and then leaves that one's alone", async () => {
    const world = leases();
    const first = world.acquire("first");
    await world.pass(100);
    const usurper = world.held({ host: "elsewhere", pid: 1 });
    await world.pass(2_000);
    expect(world.lost).toEqual(["first: another instance took over"]);
    await first.lease.release();
    expect(world.queue.records.get("active")?.value).toBe(usurper);
  });

  it("outlives renewals that fail, and one whose answer was lost", async () => {
    const world = leases();
    const first = world.acquire("first");
    await world.pass(100);
    world.queue.bad = 0.5;
    await world.pass(300_000);
    world.queue.bad = 0;
    await world.pass(10_000);
    expect([await first.had(), world.lost]).toEqual([true, []]);
  });

  // A renewal that was on its way while the service stopped made the record anew, and ended the process as if it was replaced.
  it("is let go of for good also while it is being renewed", async () => {
    const world = leases();
    const first = world.acquire("first");
    await world.pass(100);
    world.clock.advance(2_000); // a renewal begins, and has no answer yet
    const released = first.lease.release();
    await world.pass(10_000);
    await released;
    expect([world.queue.records.has("active"), world.lost]).toEqual([false, []]);
  });

  it("is not waited for any more once it is not wanted", async () => {
    const world = leases();
    world.held({ host: "elsewhere", pid: 1 });
    const watcher = world.acquire("watcher");
    await world.pass(1_000);
    watcher.stop();
    await world.pass(1);
    expect(await watcher.had()).toBe(false);
    await world.pass(60_000);
    expect(JSON.parse(world.queue.records.get("active")!.value)).toMatchObject({ host: "elsewhere" });
  });
});

function leases() {
  const clock = new ManualClock(1_000_000);
  const queue = new SimQueue({ clock, random: seededRandom(3), note: () => {} });
  const { records } = queue.connect().jobQueue;
  const lost: string[] = [];
  return {
    clock,
    queue,
    lost,
    /** Somebody has it. */
    held: (holder: { host: string; pid: number }) => {
      const value = JSON.stringify({ id: "jobs_other", beat: 0, ...holder });
      queue.put("active", value, undefined);
      return value;
    },
    acquire: (name: string) => {
      const stop = new AbortController();
      const onLost = (why: string) => void lost.push(`${name}: ${why}`);
      const lease = new ActiveLease({ records, clock, log: createLogger("jobs", "silent"), onLost });
      const acquired = lease.acquire(stop.signal);
      /** Whether it has it by now. */
      const had = () => Promise.race([acquired, settled().then(() => false)]);
      return { lease, had, stop: () => stop.abort() };
    },
    pass: async (ms: number) => {
      for (let passed = 0; passed < ms; passed += 100) {
        await settled();
        clock.advance(Math.min(100, ms - passed));
      }
      await settled();
    },
  };
}

const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
