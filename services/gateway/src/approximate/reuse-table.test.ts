import { describe, expect, it } from "vitest";
import { checkpointEvery, fractionOf, REUSE_TABLE, reuseTableOf, stepOf, usefulSteps } from "./reuse-table.ts";

const TABLE = [
  { minSimilarity: 0.9, fraction: 0.5 },
  { minSimilarity: 0.8, fraction: 0.2 },
];

describe("what similar prompts have in common", () => {
  it("is more of the steps the more alike they are, and nothing below the last rule", () => {
    expect([1, 0.9, 0.899, 0.8, 0.79, -1].map((similarity) => fractionOf(similarity, TABLE))).toEqual([
      0.5, 0.5, 0.2, 0.2, 0, 0,
    ]);
    expect(fractionOf(Number.NaN, TABLE)).toBe(0);
  });

  it("is whole steps, and never all of them", () => {
    expect([stepOf(15, 0.5), stepOf(1, 0.5), stepOf(4, 1), stepOf(20, 0)]).toEqual([7, 0, 3, 0]);
    expect([usefulSteps(15, TABLE), usefulSteps(2, TABLE), usefulSteps(1, TABLE)]).toEqual([[3, 7], [1], []]);
  });

  it("is looked for at checkpoints that meet it, or are a tenth of the steps apart", () => {
    expect([10, 20, 25, 150, 4, 1].map((steps) => checkpointEvery(steps, TABLE))).toEqual([1, 2, 2, 15, 2, 1]);
  });

  it("is nothing with a model that was not measured", () => {
    expect(reuseTableOf("atelier-tiny")).toBe(REUSE_TABLE);
    expect(reuseTableOf("sd15")).toEqual([]);
  });

  it("stands in the table in order, each rule stricter than the next and worth no less", () => {
    expect(REUSE_TABLE.length).toBeGreaterThan(0);
    REUSE_TABLE.forEach(({ minSimilarity, fraction }, i) => {
      expect(minSimilarity).toBeLessThan(REUSE_TABLE[i - 1]?.minSimilarity ?? 1);
      expect(fraction).toBeLessThanOrEqual(REUSE_TABLE[i - 1]?.fraction ?? 0.9);
      expect(fraction).toBeGreaterThan(0);
    });
  });
});
