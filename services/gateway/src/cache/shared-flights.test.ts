import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { MemoryStore } from "../shared/memory-store.ts";
import { BreakableStore } from "../testing/breakable-store.ts";
import { settle } from "../testing/cache-world.ts";
import { SharedFlights } from "./shared-flights.ts";

describe("SharedFlights", () => {
  it("has one of two gateways make, and hands its result to the other because that waits", async () => {
    const { first, second } = twoGateways();
    const [one, two] = [first.fly(), second.fly()];
    await settle();
    expect([first.makings.length, second.makings.length]).toEqual([1, 0]);
    first.makings[0]!.resolve("picture");
    expect(await one).toEqual({ result: "picture", made: true });
    expect(await two).toEqual({ result: "picture", made: false });
  });

  it("hands nothing over where nobody waits, and leaves no lease behind", async () => {
    const { first, store, handedOver } = twoGateways();
    const one = first.fly();
    await settle();
    first.makings[0]!.resolve("picture");
    await one;
    await settle();
    expect(handedOver).toEqual([]);
    expect(await store.get("cache:flight:id")).toBeUndefined();
  });

  it("has the next one make when the first one fails, at once", async () => {
    const { first, second } = twoGateways();
    const [one, two] = [first.fly(), second.fly()];
    await settle();
    first.makings[0]!.reject(new ServingError("WORKER_LOST", "lost"));
    await expect(one).rejects.toThrow("lost");
    await settle();
    expect(second.makings).toHaveLength(1);
    second.makings[0]!.resolve("picture");
    expect(await two).toEqual({ result: "picture", made: true });
  });

  it("waits for one that makes for long, and for one that died no longer than its lease", async () => {
    const { first, second, clock } = twoGateways();
    void first.fly();
    await settle();
    const two = second.fly();
    for (let ms = 0; ms < 30_000; ms += 100) await pass(clock, 100);
    expect(second.makings).toHaveLength(0);

    first.store.away = true; // as one that renews no more
    await pass(clock, 2_900);
    for (let ms = 0; ms < 400; ms += 100) await pass(clock, 100);
    expect(second.makings).toHaveLength(1);
    second.makings[0]!.resolve("picture");
    expect((await two).made).toBe(true);
  });

  it("neither renews nor ends a successor's lease when it was held up for too long", async () => {
    const { first, second, clock, store } = twoGateways();
    const one = first.fly();
    await settle();
    await store.delete("cache:flight:id"); // it ran out
    const two = second.fly();
    await settle();
    expect(second.makings).toHaveLength(1);
    const held = String(await store.get("cache:flight:id"));
    await pass(clock, 1_000);
    first.makings[0]!.resolve("late");
    await one;
    await settle();
    expect(String(await store.get("cache:flight:id"))).toBe(held);
    second.makings[0]!.resolve("picture");
    await two;
  });

  it("has each make its own without the store", async () => {
    const { first, second } = twoGateways();
    first.store.away = true;
    second.store.away = true;
    const both = [first.fly(), second.fly()];
    await settle();
    first.makings[0]!.resolve("one");
    second.makings[0]!.resolve("two");
    expect(await Promise.all(both)).toEqual([
      { result: "one", made: true },
      { result: "two", made: true },
    ]);
  });

  it("makes its own when the store is lost while it waits", async () => {
    const { first, second, clock } = twoGateways();
    void first.fly();
    await settle();
    const two = second.fly();
    await settle();
    second.store.away = true;
    await pass(clock, 200);
    second.makings[0]!.resolve("own");
    expect(await two).toEqual({ result: "own", made: true });
  });

  it("waits no longer than the deadline, nor than it is wanted", async () => {
    const { first, second, clock } = twoGateways();
    void first.fly();
    await settle();
    const late = second.fly({ ms: 150 }).catch((error: unknown) => error);
    const controller = new AbortController();
    const unwanted = second.fly({ signal: controller.signal }).catch((error: unknown) => error);
    await settle();
    await pass(clock, 150);
    expect(await late).toMatchObject({ code: "DEADLINE_EXCEEDED" });
    controller.abort(new ServingError("CANCELLED", "gone"));
    expect(await unwanted).toMatchObject({ code: "CANCELLED" });
  });

  it("looks by itself where the message that it is over gets lost", async () => {
    const { first, second, clock } = twoGateways();
    first.store.mute = true;
    const one = first.fly();
    await settle();
    const two = second.fly();
    await settle();
    first.makings[0]!.resolve("picture");
    await one;
    await settle();
    await pass(clock, 200);
    expect(await two).toEqual({ result: "picture", made: false });
  });
});

function twoGateways() {
  const clock = new ManualClock(1_000);
  const inner = new MemoryStore(clock);
  const handedOver: string[] = [];
  const gateway = () => {
    const store = new BreakableStore(inner);
    const flights = new SharedFlights({ store, clock, leaseMs: 3_000 });
    const makings: PromiseWithResolvers<string>[] = [];
    const fly = ({ ms = 60_000, signal = new AbortController().signal } = {}) =>
      flights.fly<string>(
        "id",
        {
          look: async () => handedOver.at(-1),
          make: () => {
            const making = Promise.withResolvers<string>();
            makings.push(making);
            return making.promise;
          },
          handOver: async (result) => void handedOver.push(result),
        },
        { deadline: Deadline.after(clock, ms), signal },
      );
    return { store, makings, fly };
  };
  return { first: gateway(), second: gateway(), clock, store: inner, handedOver };
}

async function pass(clock: ManualClock, ms: number): Promise<void> {
  clock.advance(ms);
  await settle();
}
