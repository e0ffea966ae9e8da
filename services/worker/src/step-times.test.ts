import { describe, expect, it } from "vitest";
import { StepTimes } from "./step-times.ts";

describe("StepTimes", () => {
  it("knows nothing before a size's second run on a lane: the first one allocates", () => {
    const times = new StepTimes();
    expect(times.runMs("tiny", square(32), 4, 2)).toBe(0);
    times.observe(run({ ms: 500 }));
    expect(times.runMs("tiny", square(32), 4, 2)).toBe(0);
    times.observe(run({ ms: 20 }));
    times.observe(run({ lane: "0", ms: 500 }));
    expect(times.runMs("tiny", square(32), 4, 2)).toBe(20);
  });

  it("follows a device that gets slower, without jumping at one slow run", () => {
    const times = learned({ ms: 10 });
    times.observe(run({ ms: 10_000 }));
    expect(times.runMs("tiny", square(32), 4, 2)).toBeLessThanOrEqual(14);
    for (let i = 0; i < 50; i++) times.observe(run({ ms: 40 }));
    expect(times.runMs("tiny", square(32), 4, 2)).toBeCloseTo(40, 1);
  });

  it("reads rows that it never met off the line between those that it did, and off the last one beyond", () => {
    const times = learned({ rows: 2, ms: 20 }, { rows: 6, ms: 40 });
    expect(times.runMs("tiny", square(32), 4, 4)).toBe(30);
    expect(times.runMs("tiny", square(32), 4, 10)).toBe(60);
    expect(times.runMs("tiny", square(32), 4, 1)).toBe(10);
  });

  it("never predicts less time for more rows, whatever noise says", () => {
    const times = learned({ rows: 2, ms: 20 }, { rows: 4, ms: 18 });
    expect(times.runMs("tiny", square(32), 4, 3)).toBe(20);
    expect(times.runMs("tiny", square(32), 4, 8)).toBe(18);
  });

  it("hopes for some gain where only one size is known, so that another is tried", () => {
    const together = learned({ rows: 2, ms: 20 }).runMs("tiny", square(32), 4, 4);
    expect(together).toBeGreaterThan(20);
    expect(together).toBeLessThan(0.9 * 40);
  });

  it.each([
    ["a larger shape", square(64), 4, 80],
    ["a smaller shape", square(16), 4, 5],
    ["a lane of one thread", square(32), 1, 40],
  ])("predicts %s from what it knows, within half as much again", (_, shape, threads, ms) => {
    const predicted = learned({ rows: 2, ms: 20 }).runMs("tiny", shape, threads, 2);
    expect(predicted).toBeGreaterThan(ms / 1.5);
    expect(predicted).toBeLessThan(ms * 1.5);
  });

  it("hopes that a size has become cheaper that others are preferred to, so that it is tried again one day", () => {
    const times = learned({ rows: 2, ms: 20 }, { rows: 4, ms: 40 });
    for (let i = 0; i < 1000; i++) times.observe(run({ rows: 2, ms: 20 }));
    expect(times.hopefulRunMs("tiny", square(32), 4, 4)).toBeGreaterThan(30);
    expect(times.hopefulRunMs("tiny", square(32), 4, 4)).toBeLessThan(39);
    for (let i = 0; i < 100_000; i++) times.observe(run({ rows: 2, ms: 20 }));
    expect(times.hopefulRunMs("tiny", square(32), 4, 4)).toBe(20);
    expect(times.runMs("tiny", square(32), 4, 4)).toBe(40);
    times.observe(run({ rows: 4, ms: 40 }));
    expect(times.hopefulRunMs("tiny", square(32), 4, 4)).toBe(40);
  });

  it("keeps models apart", () => {
    expect(learned({ ms: 10 }).runMs("large", square(32), 4, 2)).toBe(0);
  });

  it("counts a row's share of the whole device for the backlog: batching and lanes side by side make it smaller", () => {
    const times = learned({ rows: 2, ms: 40, lane: "0", lanes: 4 });
    expect(times.msPerRow("tiny", square(32))).toBe(40 / 4 / 2);
    expect(times.msPerRow("tiny", square(64))).toBe(4 * (40 / 4 / 2));
    expect(times.msPerRow("large", square(32))).toBe(0);
  });

  it("is the same table after a journey as text", () => {
    const times = learned({ rows: 2, ms: 20 }, { side: 64, rows: 1, ms: 33 }, { threads: 1, rows: 2, ms: 41 });
    const read = StepTimes.fromJSON(JSON.parse(JSON.stringify(times)));
    expect(read.toJSON()).toEqual(times.toJSON());
    expect(read.runMs("tiny", square(64), 4, 1)).toBe(33);
    expect(read.msPerRow("tiny", square(64))).toBe(33);
    read.observe(run({ ms: 5000 })); // the first run in this process allocates as well
    expect(read.runMs("tiny", square(32), 4, 2)).toBe(20);
  });
});

interface RunOptions {
  readonly side?: number;
  readonly rows?: number;
  readonly ms: number;
  readonly threads?: number;
  readonly lane?: string;
  readonly lanes?: number;
}

function run({ side = 32, rows = 2, ms, threads = 4, lane = "wide", lanes = 1 }: RunOptions) {
  return { model: "tiny", shape: square(side), rows, ms, threads, lane, lanes };
}

function square(side: number) {
  return { channels: 4, height: side, width: side };
}

function learned(...runs: readonly RunOptions[]): StepTimes {
  const times = new StepTimes();
  for (const each of runs) {
    times.observe(run({ ...each, ms: 9999 }));
    times.observe(run(each));
  }
  return times;
}
