import { describe, expect, it } from "vitest";
import { change, outcome } from "../testing/job-parts.ts";
import { JobLedger } from "./job-ledger.ts";

const HEARD = { stepsDone: 3, stepsTotal: 20, workerId: "w1", heardAtMs: 5 };

describe("JobLedger", () => {
  it("counts each item by its first outcome, and no repeat of it", () => {
    const ledger = new JobLedger(4);
    expect(ledger.apply(outcome(0, "done"))).toBe(0);
    expect(ledger.apply(outcome(0, "done"))).toBeUndefined();
    expect(ledger.apply(outcome(0, "failed"))).toBeUndefined();
    ledger.apply(outcome(1, "failed", { attempts: 5, deadLetter: true }));
    ledger.apply(outcome(2, "filtered"));
    expect(ledger.counts).toEqual({ queued: 1, running: 0, done: 1, failed: 1, cancelled: 0, filtered: 1 });
    expect([ledger.deviceMs, ledger.redelivered, ledger.deadLetters]).toEqual([10, 4, 1]);
    expect([...ledger.used]).toEqual([["tiny", { images: 1, deviceMs: 10 }]]);
    expect(ledger.reason(1)).toMatchObject({ code: "NUMERIC_FAILURE", attempts: 5 });
    expect(ledger.reason(2)).toMatchObject({ code: "FILTERED", message: "policy" });
  });

  it("knows nothing of items that the job does not have", () => {
    const ledger = new JobLedger(2);
    expect(ledger.apply(outcome(2, "done"))).toBeUndefined();
    ledger.heard(7, HEARD);
    expect(ledger.counts).toMatchObject({ queued: 2, running: 0, done: 0 });
  });

  it("counts a picture of any round, and a failure of none before a retry", () => {
    const ledger = new JobLedger(2);
    ledger.apply(outcome(0, "failed", { round: 3 }));
    ledger.apply(outcome(1, "failed", { round: 3 }));
    ledger.apply(change("RUNNING", { retried: 2 }));
    expect(ledger.counts).toMatchObject({ queued: 2, failed: 0 });
    expect(ledger.apply(outcome(0, "failed", { round: 3 }))).toBeUndefined();
    expect(ledger.apply(outcome(0, "done", { round: 3 }))).toBe(0);
    expect(ledger.apply(outcome(1, "failed", { round: 4 }))).toBe(1);
  });

  it("queues those again that a retry names, and of those only what had failed", () => {
    const ledger = new JobLedger(3);
    for (const index of [0, 1]) ledger.apply(outcome(index, "failed"));
    ledger.apply(outcome(2, "done"));
    ledger.apply(change("RUNNING", { retried: 2, indexes: [1, 2] }));
    expect([0, 1, 2].map((index) => ledger.of(index))).toEqual(["failed", "queued", "done"]);
    expect(ledger.nextWaiting()).toBe(1);
    expect(ledger.reason(1)).toBeUndefined();
  });

  // A straggler of an older round failed first, and what was handed out anew failed as well: the queue and the log had seen
  // the newer round, dropped the retried item as a repeat of it, and the job never ended.
  it("gives a retried item a round that neither the queue nor the log has seen", () => {
    const ledger = new JobLedger(1);
    ledger.apply(outcome(0, "failed", { round: 1 }));
    ledger.apply(outcome(0, "failed", { round: 3 }));
    ledger.apply(change("RUNNING", { retried: 1 }));
    expect(ledger.roundOf(0, 2)).toBe(4);
    expect(ledger.roundOf(0, 9)).toBe(9);
    expect(ledger.newerRound(2)).toBe(5);
  });

  it("has rounds beyond 65,535", () => {
    const ledger = new JobLedger(1);
    ledger.apply(outcome(0, "failed", { round: 65_535 }));
    ledger.apply(change("RUNNING", { retried: 1 }));
    expect(ledger.roundOf(0, 1)).toBe(65_536);
  });

  it("cancels what has not ended, and keeps what has; what comes later changes nothing", () => {
    const ledger = new JobLedger(3);
    ledger.apply(outcome(0, "done"));
    ledger.handOut(1);
    ledger.heard(1, HEARD);
    ledger.apply(change("CANCELLED", { atMs: 7 }));
    expect(ledger.apply(outcome(1, "done"))).toBeUndefined();
    expect(ledger.counts).toEqual({ queued: 0, running: 0, done: 1, failed: 0, cancelled: 2, filtered: 0 });
    expect([ledger.ended, ledger.endedAtMs]).toEqual([true, 7]);
  });

  it("has ended by the first event that says so once all items have, until a retry", () => {
    const ledger = new JobLedger(1);
    ledger.apply(change("DONE", { atMs: 3 }));
    expect(ledger.endedAtMs).toBeUndefined(); // of an end that a retry came before
    ledger.apply(outcome(0, "failed"));
    ledger.apply(change("DONE", { atMs: 4 }));
    ledger.apply(change("DONE", { atMs: 5 }));
    expect([ledger.endedAtMs, ledger.retries]).toEqual([4, 0]);
    ledger.apply(change("RUNNING", { retried: 1 }));
    expect([ledger.endedAtMs, ledger.ended, ledger.retries]).toEqual([undefined, false, 1]);
  });

  it("hands items out in order; one that is put back is next, and one that has ended is not put back", () => {
    const ledger = new JobLedger(5);
    for (const index of [0, 1, 2]) {
      expect(ledger.nextWaiting()).toBe(index);
      ledger.handOut(index);
    }
    ledger.apply(outcome(0, "done"));
    expect([...ledger.outItems()]).toEqual([1, 2]);
    expect([ledger.putBack(1), ledger.putBack(0), ledger.putBack(4)]).toEqual([true, false, false]);
    expect([ledger.nextWaiting(), ledger.nextWaiting(2), ledger.waiting, ledger.out]).toEqual([1, 3, 3, 1]);
    expect(() => ledger.handOut(2)).toThrow("item 2 waits");
  });

  it("says that an item runs while a worker is heard to be at it, whoever handed it out", () => {
    const ledger = new JobLedger(3);
    ledger.heard(1, HEARD);
    expect([ledger.of(1), ledger.progress(1), ledger.nextWaiting(1)]).toEqual(["running", HEARD, 2]);
    expect(ledger.counts).toMatchObject({ queued: 2, running: 1 });
    ledger.apply(outcome(1, "done"));
    ledger.heard(1, HEARD); // a report that came late
    expect([ledger.of(1), ledger.progress(1)]).toEqual(["done", undefined]);
    expect(ledger.counts).toMatchObject({ queued: 2, running: 0, done: 1 });
  });

  it("lists items of a state from an index on", () => {
    const ledger = new JobLedger(10);
    for (const index of [1, 3, 5, 7]) ledger.apply(outcome(index, "failed"));
    expect(ledger.in("failed", 2, 2)).toEqual([3, 5]);
    expect(ledger.in("queued", -5, 2)).toEqual([0, 2]);
    expect(ledger.in("done", 0, 10)).toEqual([]);
  });

  it("takes less than a megabyte for 100,000 items", () => {
    const before = process.memoryUsage().arrayBuffers;
    const ledger = new JobLedger(100_000);
    for (let index = 0; index < ledger.size; index++) {
      ledger.handOut(ledger.nextWaiting()!);
      ledger.apply(outcome(index, "done"));
    }
    expect(ledger.counts.done).toBe(100_000);
    // Nothing but its arrays grows with items that went well.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThanOrEqual(1_000_000);
    expect([...ledger.outItems()]).toEqual([]);
    expect(ledger.reason(5) ?? ledger.progress(5)).toBeUndefined();
  });
});
