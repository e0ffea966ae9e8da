import { ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { MemoryStore } from "../shared/memory-store.ts";
import { BreakableStore } from "../testing/breakable-store.ts";
import { IdempotencyKeys, type IdempotencyOutcome, type KeyEntry, type KeyedWork } from "./idempotency-keys.ts";
import type { IdempotentAnswer } from "./idempotent-answer.ts";

describe("IdempotencyKeys", () => {
  it("gives the answer again, to the letter, on every gateway", async () => {
    const { a, b } = twoGateways();
    await workOf(await a.enter(request())).finish(ANSWER);
    expect(await a.enter(request())).toEqual({ replay: ANSWER });
    expect(await b.enter(request())).toEqual({ replay: ANSWER });
  });

  it("lets one of two gateways work, and the other wait for its answer", async () => {
    const { a, b, clock } = twoGateways();
    const [one, other] = [a.enter(request()), b.enter(request())];
    const first = workOf(await Promise.race([one, other]));
    await turn();
    await first.finish(ANSWER);
    await tick(clock, 200);
    const entries = await Promise.all([one, other]);
    expect(entries.filter((entry) => "work" in entry)).toHaveLength(1);
    expect(entries.filter((entry) => "replay" in entry)).toEqual([{ replay: ANSWER }]);
  });

  it("lets a second request on one gateway wait, too", async () => {
    const { a, clock } = twoGateways();
    const work = workOf(await a.enter(request()));
    const second = a.enter(request());
    await tick(clock, 500);
    await work.finish(ANSWER);
    await tick(clock, 200);
    expect(await second).toEqual({ replay: ANSWER });
  });

  it("refuses a key that was used for another request: while that is in progress, and once it is answered", async () => {
    const { a, b } = twoGateways();
    const work = workOf(await a.enter(request()));
    const conflict = { status: 422, code: "CONFLICT", field: "idempotency-key" };
    await expect(b.enter(request({ fingerprint: "another" }))).rejects.toMatchObject(conflict);
    await work.finish(ANSWER);
    await expect(a.enter(request({ fingerprint: "another" }))).rejects.toMatchObject(conflict);
    expect(await a.enter(request())).toEqual({ replay: ANSWER }); // the refused ones changed nothing
  });

  it("knows the same key of another tenant for another key", async () => {
    const { a } = twoGateways();
    await workOf(await a.enter(request())).finish(ANSWER);
    expect(await a.enter(request({ tenant: "another", fingerprint: "another" }))).toHaveProperty("work");
  });

  it("lets another gateway work once the lease of one that died has ended, with the same seed", async () => {
    const { a, b, clock, die } = twoGateways();
    const work = workOf(await a.enter(request()));
    die();
    const second = b.enter(request());
    await tick(clock, LEASE_MS - 500);
    expect(await isSettled(second)).toBe(false);
    await tick(clock, 1_000);
    expect(workOf(await second).seed).toBe(work.seed);
  });

  it("keeps the lease for as long as the work takes", async () => {
    const { a, b, clock } = twoGateways();
    const work = workOf(await a.enter(request()));
    const second = b.enter(request({ waitMs: 10 * LEASE_MS }));
    await tick(clock, 5 * LEASE_MS);
    expect(await isSettled(second)).toBe(false);
    await work.finish(ANSWER);
    await tick(clock, 200);
    expect(await second).toEqual({ replay: ANSWER });
  });

  it("says 409 with a time to come back at when the work takes longer than anybody waits", async () => {
    const { a, b, clock } = twoGateways();
    await a.enter(request());
    const second = b.enter(request({ waitMs: 1_000 }));
    const refused = expect(second).rejects.toMatchObject({ status: 409, headers: { "retry-after": "1" } });
    await tick(clock, 1_200);
    await refused;
  });

  it("lets no more wait than it may", async () => {
    const { b, clock } = twoGateways({ waitingMax: 2 });
    const work = workOf(await b.enter(request()));
    const waiting = [b.enter(request()), b.enter(request())];
    await turn();
    await expect(b.enter(request())).rejects.toMatchObject({ status: 409, headers: { "retry-after": "1" } });
    await work.finish(ANSWER);
    await tick(clock, 200);
    expect(await Promise.all(waiting)).toEqual([{ replay: ANSWER }, { replay: ANSWER }]);
  });

  it("stops waiting for a caller who left", async () => {
    const { a, b } = twoGateways();
    await a.enter(request());
    const gone = new AbortController();
    const second = b.enter(request({ signal: gone.signal }));
    gone.abort(new ServingError("CANCELLED", "left"));
    await expect(second).rejects.toMatchObject({ code: "CANCELLED" });
  });

  it("keeps request and seed of work that failed, and the next attempt works", async () => {
    const { a, b } = twoGateways();
    const work = workOf(await a.enter(request()));
    await work.release({ forget: false });
    expect(workOf(await b.enter(request())).seed).toBe(work.seed);
    await expect(a.enter(request({ fingerprint: "another" }))).rejects.toMatchObject({ status: 422 });
  });

  it("forgets a request that was refused, so that it can be mended under its key", async () => {
    const { a, b } = twoGateways();
    await workOf(await a.enter(request())).release({ forget: true });
    expect(await b.enter(request({ fingerprint: "mended" }))).toHaveProperty("work");
  });

  it("forgets after a day", async () => {
    const { a, clock } = twoGateways();
    await workOf(await a.enter(request())).finish(ANSWER);
    clock.advance(24 * 60 * 60 * 1_000);
    expect(await a.enter(request({ fingerprint: "another" }))).toHaveProperty("work");
  });

  it("holds on each gateway alone where the shared store is away", async () => {
    const { a, b, shared, notes } = twoGateways();
    shared.away = true;
    const work = workOf(await a.enter(request()));
    await work.finish(ANSWER);
    expect(await a.enter(request())).toEqual({ replay: ANSWER });
    expect(await b.enter(request())).toHaveProperty("work");
    expect(notes).toContain("unshared");
  });

  it("still knows what it answered itself when the shared store goes away, and when it forgets", async () => {
    const { a, shared } = twoGateways();
    await workOf(await a.enter(request())).finish(ANSWER);
    shared.away = true;
    expect(await a.enter(request())).toEqual({ replay: ANSWER });
    shared.away = false;
    for (const key of shared.keys) await shared.delete(key);
    expect(await a.enter(request())).toEqual({ replay: ANSWER });
  });

  it("takes a damaged answer for none", async () => {
    const { a, b, shared } = twoGateways();
    await workOf(await a.enter(request())).finish(ANSWER);
    const key = [...shared.keys].find((name) => name.endsWith(":answer"))!;
    const value = (await shared.get(key))!;
    value[value.length - 1]! ^= 1;
    await shared.set(key, value, { ttlMs: 1_000 });
    expect(await b.enter(request())).toHaveProperty("work");
  });

  it("answers with one of its ends only", async () => {
    const { a } = twoGateways();
    const work = workOf(await a.enter(request()));
    await work.finish(ANSWER);
    await work.release({ forget: true });
    expect(await a.enter(request())).toEqual({ replay: ANSWER });
  });
});

const LEASE_MS = 3_000;
const ANSWER: IdempotentAnswer = {
  status: 200,
  headers: { "content-type": "image/png", "x-atelier-seed": "7" },
  body: Buffer.from([0, 10, 255, 10]),
};

function request(changes: Partial<Parameters<IdempotencyKeys["enter"]>[0]> = {}) {
  const signal = new AbortController().signal;
  return { tenant: "shop", key: "order-1", fingerprint: "a red mug", waitMs: 60_000, signal, ...changes };
}

function twoGateways({ waitingMax = 100 }: { waitingMax?: number } = {}) {
  const clock = new ManualClock(1);
  const notes: IdempotencyOutcome[] = [];
  const shared = new BreakableStore(new MemoryStore(clock));
  /** A gateway that died renews nothing. */
  const dead = { yet: false };
  const mortal: typeof clock = Object.create(clock, {
    after: { value: (ms: number, run: () => void) => clock.after(ms, () => dead.yet || run()) },
    nowMs: { value: () => clock.nowMs() },
  });
  const gateway = (itsClock: typeof clock) =>
    new IdempotencyKeys({
      clock: itsClock,
      own: new MemoryStore(clock),
      shared,
      waitingMax,
      leaseMs: LEASE_MS,
      note: (outcome) => notes.push(outcome),
    });
  return {
    a: gateway(mortal),
    b: gateway(clock),
    clock,
    shared,
    notes,
    die: () => {
      dead.yet = true;
    },
  };
}

function workOf(entry: KeyEntry): KeyedWork {
  if (!("work" in entry)) throw new Error("it was replayed");
  return entry.work;
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Time passes, and whoever waits for it gets on. */
async function tick(clock: ManualClock, ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += 100) {
    clock.advance(100);
    await turn();
  }
}

async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  const pending = Symbol();
  return (await Promise.race([promise, Promise.resolve(pending)])) !== pending;
}
