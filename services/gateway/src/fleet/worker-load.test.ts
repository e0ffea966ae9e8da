import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { backlogOf, type JobsLeftMs, WorkerLoad } from "./worker-load.ts";

describe("WorkerLoad", () => {
  it("is what the worker last reported, less the time since: the most urgent first, and in a class the shortest", () => {
    const { load, clock, report } = workerLoad();
    report(1n, { interactive: [100, 20], standard: [50] });
    expect(load.jobsLeftMs(clock.nowMs())).toEqual({ interactive: [20, 100], standard: [50], bulk: [] });
    clock.advance(30);
    expect(load.jobsLeftMs(clock.nowMs())).toEqual({ interactive: [90], standard: [50], bulk: [] });
    clock.advance(100);
    expect(load.jobsLeftMs(clock.nowMs())).toEqual({ interactive: [], standard: [40], bulk: [] });
    clock.advance(2000);
    expect(load.jobsLeftMs(clock.nowMs())).toEqual({ interactive: [], standard: [], bulk: [] });
  });

  it("counts a placement at once, and until a report has it in", () => {
    const { total, report, place } = workerLoad();
    report(1n, { standard: [100] });
    const placed = place(40);
    expect(total()).toBe(140);
    report(2n, { standard: [90] }); // published before the request arrived there
    expect(total()).toBe(130);
    placed.accepted({ sequence: 3n });
    expect(total()).toBe(130);
    report(4n, { standard: [80, 40] });
    expect(total()).toBe(120);
  });

  it("never counts twice, whichever of the state and the acceptance comes first", () => {
    const { total, report, place } = workerLoad();
    report(1n, { standard: [100] });
    const placed = place(40);
    report(3n, { standard: [100, 40] });
    placed.accepted({ sequence: 2n });
    expect(total()).toBe(140);
  });

  it("keeps others' placements when one is counted, and lets a late report change nothing", () => {
    const { total, report, place } = workerLoad();
    report(1n, {});
    const [first] = [place(10), place(20)];
    first.accepted({ sequence: 5n });
    report(6n, { standard: [9] });
    expect(total()).toBe(29);
    report(4n, { standard: [500] });
    expect(total()).toBe(29);
  });

  it("counts a request of several images as so many jobs", () => {
    const { load, clock } = workerLoad();
    load.place({ priority: "bulk", jobs: 3, msEach: 10 });
    expect(load.jobsLeftMs(clock.nowMs()).bulk).toEqual([10, 10, 10]);
    expect(load.uncounted).toBe(1);
  });

  it("takes a placement off that is over before it was accepted, once", () => {
    const { total, place, load } = workerLoad();
    const placed = place(40);
    placed.release();
    placed.release();
    placed.accepted({ sequence: 7n });
    expect(total()).toBe(0);
    expect(load.uncounted).toBe(0);
  });

  it("waits for the next state where a worker does not number its acceptances", () => {
    const { total, report, place } = workerLoad();
    report(8n, {});
    place(40).accepted({ sequence: 0n });
    expect(total()).toBe(40);
    report(9n, { standard: [39] });
    expect(total()).toBe(39);
  });

  it("takes each class for one job where a worker does not tell its jobs", () => {
    const { load, clock } = workerLoad();
    load.reported({ sequence: 1n, backlogMs: { interactive: 0, standard: 70, bulk: 5 } }, clock.nowMs());
    expect(load.jobsLeftMs(clock.nowMs())).toEqual({ interactive: [], standard: [70], bulk: [5] });
  });

  it("counts from the beginning after the worker was lost", () => {
    const { total, report, load } = workerLoad();
    report(80n, { standard: [500] });
    load.lost();
    expect(total()).toBe(0);
    report(1n, { standard: [3] });
    expect(total()).toBe(3);
  });
});

function workerLoad() {
  const clock = new ManualClock();
  const load = new WorkerLoad();
  return {
    load,
    clock,
    report: (sequence: bigint, jobs: Partial<JobsLeftMs>) => {
      const jobsLeftMs = { interactive: [], standard: [], bulk: [], ...jobs };
      load.reported({ sequence, backlogMs: backlogOf(jobsLeftMs), jobsLeftMs }, clock.nowMs());
    },
    place: (msEach: number) => load.place({ priority: "standard", jobs: 1, msEach }),
    total: () => Object.values(backlogOf(load.jobsLeftMs(clock.nowMs()))).reduce((sum, ms) => sum + ms, 0),
  };
}
