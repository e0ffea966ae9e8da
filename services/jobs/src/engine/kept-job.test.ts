import { describe, expect, it } from "vitest";
import type { JobRecord } from "../job.ts";
import { change, jobRecord, outcome } from "../testing/job-parts.ts";
import { KeptJob } from "./kept-job.ts";

describe("KeptJob", () => {
  it.each([
    { wish: "run", none: "queued", some: "running", all: "done" },
    { wish: "pause", none: "paused", some: "paused", all: "done" },
    { wish: "cancel", none: "cancelled", some: "cancelled", all: "cancelled" },
  ] as const)("wished to $wish is $none, $some, $all as its items end", ({ wish, none, some, all }) => {
    const job = kept({ wish, itemCount: 2 });
    const statuses = [job.status];
    job.ledger.apply(outcome(0, "done"));
    statuses.push(job.status);
    job.ledger.apply(outcome(1, "failed"));
    expect([...statuses, job.status]).toEqual([none, some, all]);
  });

  it("runs once a worker is heard to be at an item", () => {
    const job = kept({ itemCount: 2 });
    job.ledger.handOut(0);
    expect(job.status).toBe("queued");
    job.ledger.heard(0, { stepsDone: 0, stepsTotal: 20, workerId: "w1", heardAtMs: 0 });
    expect(job.status).toBe("running");
  });

  it("wants work while its owner wants it and something waits", () => {
    expect(kept().wantsWork).toBe(true);
    expect(kept({ wish: "pause" }).wantsWork).toBe(false);
    expect(kept({ deleting: true }).wantsWork).toBe(false);
    const job = kept({ itemCount: 1 });
    job.ledger.handOut(0);
    expect(job.wantsWork).toBe(false);
  });

  it("tells its end by what its items took so far: twice what was predicted, twice as long", () => {
    const job = kept({ itemCount: 10, predictedDeviceMs: 50 }); // 5 ms each, and they take 10
    for (const index of [0, 1]) {
      job.ledger.apply(outcome(index, "done"));
      job.pace.note(1_000, 10);
    }
    const view = job.view(2_000, null);
    expect(view.etaMs).toBeCloseTo(4_000); // 2 items a second
    expect(view).toMatchObject({ status: "running", spentDeviceMs: 20, itemsPerMinute: 120, endedAtMs: null });
    expect(view.spentCost).toBeCloseTo((20 / 3_600_000) * 3.6);
  });

  it("tells no end while it is held, and why only while it would run", () => {
    const job = kept({ itemCount: 2 });
    job.ledger.apply(outcome(0, "done"));
    job.pace.note(0, 10);
    expect(job.view(500, "images_per_month")).toMatchObject({ heldFor: "images_per_month", etaMs: null });
    job.ledger.apply(outcome(1, "done"));
    job.ledger.apply(change("DONE", { atMs: 9 }));
    expect(job.view(500, "images_per_month")).toMatchObject({ status: "done", heldFor: null, endedAtMs: 9 });
  });
});

function kept(said: Partial<JobRecord> = {}): KeptJob {
  return new KeptJob(jobRecord(said), 1);
}
