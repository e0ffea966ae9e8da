import { describe, expect, it } from "vitest";
import { Backlog } from "./backlog.ts";
import { StepTimes } from "./step-times.ts";

describe("StepTimes", () => {
  it("knows nothing before a shape's second run: the first one allocates", () => {
    const times = new StepTimes();
    expect(times.msPerRow("tiny", shape(32))).toBe(0);
    times.observe(run({ ms: 500 }));
    expect(times.msPerRow("tiny", shape(32))).toBe(0);
    times.observe(run({ rows: 2, ms: 20 }));
    expect(times.msPerRow("tiny", shape(32))).toBe(10);
  });

  it("follows a device that gets slower, without jumping at one slow run", () => {
    const times = learned({ 32: 10 });
    times.observe(run({ rows: 1, ms: 110 }));
    expect(times.msPerRow("tiny", shape(32))).toBeCloseTo(30);
    for (let i = 0; i < 50; i++) times.observe(run({ rows: 1, ms: 20 }));
    expect(times.msPerRow("tiny", shape(32))).toBeCloseTo(20, 2);
  });

  it("takes a shape that it never met in proportion from the nearest that it did", () => {
    const times = learned({ 32: 10, 128: 100 });
    expect(times.msPerRow("tiny", shape(48))).toBeCloseTo(10 * 2.25);
    expect(times.msPerRow("tiny", shape(120))).toBeCloseTo(100 * (120 / 128) ** 2);
  });

  it("keeps models apart", () => {
    expect(learned({ 32: 10 }).msPerRow("large", shape(32))).toBe(0);
  });
});

describe("Backlog", () => {
  it("is the steps that are left, by rows and by the time of each pass's shape", () => {
    const backlog = new Backlog(learned({ 32: 10, 64: 40 }));
    backlog.add("a", {
      model: "tiny",
      rows: 2,
      passes: [
        { shape: shape(32), steps: 20 },
        { shape: shape(64), steps: 9 },
      ],
    });
    backlog.add("b", { model: "tiny", rows: 1, passes: [{ shape: shape(32), steps: 4 }] });
    expect(backlog.totalMs).toBeCloseTo(20 * 2 * 10 + 9 * 2 * 40 + 4 * 10);

    backlog.progress("a", 22); // two steps into the second pass
    expect(backlog.totalMs).toBeCloseTo(7 * 2 * 40 + 4 * 10);
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
  return { model: "tiny", shape: shape(side), rows, ms };
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
