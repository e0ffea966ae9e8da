import { RowTimeSchema, StepTimeSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { modelView } from "../testing/views.ts";
import { StepCosts } from "./step-costs.ts";

describe("StepCosts", () => {
  it("counts a request as the worker's backlog does: steps by rows by what a row took lately", () => {
    const costs = stepCosts({ rowTimes: [row(64, 20)] });
    expect(costs.deviceMs(work({ side: 64, steps: 30, rows: 2 }))).toBe(30 * 2 * 20);
    expect(costs.deviceMs(work({ side: 64, steps: 30, rows: 1, images: 3 }))).toBe(30 * 3 * 20);
  });

  it("takes a size that it never met from the nearest, in proportion to the area", () => {
    const costs = stepCosts({ rowTimes: [row(32, 4), row(64, 20)] });
    expect(costs.deviceMs(work({ side: 128, steps: 1 }))).toBe(2 * 4 * 20);
    expect(costs.deviceMs(work({ side: 16, steps: 1 }))).toBe((2 * 4) / 4);
  });

  it("adds the passes of a picture that is made in two", () => {
    const costs = stepCosts({ rowTimes: [row(32, 5)] });
    const passes = [
      { area: 32 * 32, steps: 20 },
      { area: 64 * 64, steps: 10 },
    ];
    expect(costs.deviceMs({ model: "m", rows: 2, images: 1, passes })).toBe(20 * 2 * 5 + 10 * 2 * 20);
  });

  it("takes from the learned runs how long a request alone would be: on the better kind of lane, between known rows", () => {
    const stepTimes = [run(64, 2, 40), run(64, 8, 100), run(64, 2, 70, 1)];
    const costs = stepCosts({ stepTimes });
    expect(costs.aloneMs(work({ side: 64, steps: 10 }))).toBe(400);
    expect(costs.aloneMs(work({ side: 64, steps: 10, rows: 5 }))).toBe(700);
    expect(costs.aloneMs(work({ side: 64, steps: 10, rows: 1 }))).toBe(200);
    expect(costs.aloneMs(work({ side: 64, steps: 10, rows: 10 }))).toBe(1200);
  });

  it("goes by the model's own word before anything was learned, and knows nothing of other models", () => {
    const costs = new StepCosts({ rowTimes: [], stepTimes: [] }, [{ ...modelView("m"), stepMs: 10 }]);
    expect(costs.deviceMs(work({ side: 64, steps: 3 }))).toBe(3 * 10 * 4); // native: 32 places a side
    expect(costs.aloneMs(work({ side: 32, steps: 3 }))).toBe(30);
    expect(costs.deviceMs({ ...work({ side: 32, steps: 3 }), model: "other" })).toBeUndefined();
  });

  it("ignores times that are none", () => {
    const costs = stepCosts({ rowTimes: [row(64, Number.NaN), row(32, 0)], stepTimes: [run(64, 0, 10)] });
    expect(costs.deviceMs(work({ side: 64, steps: 3 }))).toBeUndefined();
  });
});

function stepCosts({ rowTimes = [], stepTimes = [] }: Partial<ConstructorParameters<typeof StepCosts>[0]>) {
  return new StepCosts({ rowTimes, stepTimes });
}

function work({ side, steps, rows = 2, images = 1 }: { side: number; steps: number; rows?: number; images?: number }) {
  return { model: "m", rows, images, passes: [{ area: side * side, steps }] };
}

function row(side: number, ms: number) {
  return create(RowTimeSchema, { model: "m", height: side, width: side, ms });
}

function run(side: number, rows: number, ms: number, threads = 0) {
  return create(StepTimeSchema, { model: "m", height: side, width: side, rows, ms, threads });
}
