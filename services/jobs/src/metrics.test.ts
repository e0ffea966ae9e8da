import { describe, expect, it } from "vitest";
import type { ItemShape } from "./job.ts";
import { modelShares } from "./metrics.ts";
import { SHAPE } from "./testing/job-parts.ts";

describe("a job's backlog by model", () => {
  const shape = (model: string, predictedDeviceMs: number): ItemShape => ({ ...SHAPE, model, predictedDeviceMs });

  it("is all of the one model that a job has", () => {
    expect([...modelShares([shape("sdxl", 100), shape("sdxl", 300)])]).toEqual([["sdxl", 1]]);
  });

  it("is shared among several in the proportion of what their kinds of pictures take", () => {
    expect([...modelShares([shape("sdxl", 300), shape("sd15", 100)])]).toEqual([
      ["sdxl", 0.75],
      ["sd15", 0.25],
    ]);
  });

  it("is shared alike where nobody knows what they take", () => {
    expect([...modelShares([shape("sdxl", 0), shape("sd15", 0)])]).toEqual([
      ["sdxl", 0.5],
      ["sd15", 0.5],
    ]);
  });
});
