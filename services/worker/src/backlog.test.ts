import { describe, expect, it } from "vitest";
import { Backlog } from "./backlog.ts";
import { StepTimes } from "./step-times.ts";

describe("Backlog", () => {
  it("is the steps that are left, by rows and by the time of each pass's shape", () => {
    const backlog = new Backlog(learned({ 32: 10, 64: 40 }));
    backlog.add("a", {
      model: "tiny",
      priorityClass: "interactive",
      rows: 2,
      passes: [
        { shape: shape(32), steps: 20 },
        { shape: shape(64), steps: 9 },
      ],
    });
    backlog.add("b", {
      model: "tiny",
      priorityClass: "bulk",
      rows: 1,
      passes: [{ shape: shape(32), steps: 4 }],
    });
    expect(backlog.totalMs).toBeCloseTo(20 * 2 * 10 + 9 * 2 * 40 + 4 * 10);

    backlog.progress("a", 22); // two steps into the second pass
    expect(backlog.totalMs).toBeCloseTo(7 * 2 * 40 + 4 * 10);
    expect(backlog.byClassMs).toEqual({ interactive: 7 * 2 * 40, standard: 0, bulk: 4 * 10 });
    expect(backlog.jobsLeftMs).toEqual({ interactive: [7 * 2 * 40], standard: [], bulk: [4 * 10] });
    backlog.progress("b", 4);
    expect(backlog.jobsLeftMs.bulk).toEqual([]);
    backlog.progress("b", 0);
    backlog.remove("a");
    expect(backlog.totalMs).toBeCloseTo(40);
    backlog.remove("b");
    expect(backlog.totalMs).toBe(0);
  });

  it("does not hear of jobs that are gone", () => {
    const backlog = new Backlog(learned({ 32: 10 }));
    backlog.progress("gone", 3);
    expect(backlog.totalMs).toBe(0);
  });
});

function shape(side: number) {
  return { channels: 4, height: side, width: side };
}

function run({ side = 32, rows = 1, ms }: { side?: number; rows?: number; ms: number }) {
  return { model: "tiny", shape: shape(side), rows, ms, threads: 0, lane: "wide", lanes: 1 };
}

/** Milliseconds per row, by side. */
function learned(msBySide: Record<number, number>): StepTimes {
  const times = new StepTimes();
  for (const [side, ms] of Object.entries(msBySide)) {
    times.observe(run({ side: Number(side), ms: 1000 }));
    times.observe(run({ side: Number(side), ms }));
  }
  return times;
}
