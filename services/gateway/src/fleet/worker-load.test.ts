import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { WorkerLoad } from "./worker-load.ts";

describe("WorkerLoad", () => {
  it("is what the worker last reported, less the time since, the most urgent work first", () => {
    const { load, clock, report } = workerLoad();
    report(1n, { interactive: 100, standard: 50, bulk: 1000 });
    clock.advance(30);
    expect(load.backlogMs(clock.nowMs())).toEqual({ interactive: 70, standard: 50, bulk: 1000 });
    clock.advance(90);
    expect(load.backlogMs(clock.nowMs())).toEqual({ interactive: 0, standard: 30, bulk: 1000 });
    clock.advance(2000);
    expect(load.backlogMs(clock.nowMs())).toEqual({ interactive: 0, standard: 0, bulk: 0 });
  });

  it("counts a placement at once, and until a report has it in", () => {
    const { total, report, place } = workerLoad();
    report(1n, { standard: 100 });
    const placed = place(40);
    expect(total()).toBe(140);
    report(2n, { standard: 90 }); // published before the request arrived there
    expect(total()).toBe(130);
    placed.accepted(backlog(3n, { standard: 128 }));
    expect(total()).toBe(128);
    report(4n, { standard: 120 });
    expect(total()).toBe(120);
  });

  it("never counts twice, whichever of the state and the acceptance comes first", () => {
    const { total, report, place } = workerLoad();
    report(1n, { standard: 100 });
    const placed = place(40);
    report(3n, { standard: 140 });
    placed.accepted(backlog(2n, { standard: 140 }));
    expect(total()).toBe(140);
  });

  it("keeps others' placements when one is accepted, and lets a late report change nothing", () => {
    const { total, report, place } = workerLoad();
    report(1n, { standard: 0 });
    const [first] = [place(10), place(20)];
    first.accepted(backlog(5n, { standard: 12 }));
    expect(total()).toBe(32);
    report(4n, { standard: 500 });
    expect(total()).toBe(32);
  });

  it("takes a placement off that is over before it was accepted, once", () => {
    const { total, place, load } = workerLoad();
    const placed = place(40);
    placed.release();
    placed.release();
    placed.accepted(backlog(7n, { standard: 40 }));
    expect(total()).toBe(0);
    expect(load.uncounted).toBe(0);
  });

  it("waits for the next state where a worker does not number its acceptances", () => {
    const { total, report, place } = workerLoad();
    report(8n, { standard: 0 });
    place(40).accepted(backlog(0n, { standard: 1 }));
    expect(total()).toBe(40);
    report(9n, { standard: 39 });
    expect(total()).toBe(39);
  });

  it("counts from the beginning after the worker was lost", () => {
    const { total, report, load } = workerLoad();
    report(80n, { standard: 500 });
    load.lost();
    expect(total()).toBe(0);
    report(1n, { standard: 3 });
    expect(total()).toBe(3);
  });
});

function workerLoad() {
  const clock = new ManualClock();
  const load = new WorkerLoad();
  return {
    load,
    clock,
    report: (...told: Parameters<typeof backlog>) => load.reported(backlog(...told), clock.nowMs()),
    place: (ms: number) => load.place({ priority: "standard", ms }, clock),
    total: () => Object.values(load.backlogMs(clock.nowMs())).reduce((sum, ms) => sum + ms, 0),
  };
}

function backlog(sequence: bigint, ms: { interactive?: number; standard?: number; bulk?: number }) {
  return { sequence, backlogMs: { interactive: 0, standard: 0, bulk: 0, ...ms } };
}
