import { describe, expect, it } from "vitest";
import { SIMULATED_GPUS, type SimulatedGpu, type SimulatedModel } from "./gpu-figures.ts";
import { GpuTimes } from "./gpu-times.ts";

/** Published times of one whole picture at the native size: where from, see gpu-figures.ts. */
const PUBLISHED: readonly [gpu: SimulatedGpu, model: SimulatedModel, steps: number, rows: 1 | 2, ms: number][] = [
  ["a10", "sdxl", 30, 2, 8160],
  ["a100", "sdxl", 30, 2, 2740],
  ["h100", "sdxl", 30, 2, 1470],
  ["a100", "sdxl", 4, 1, 426],
  ["h100", "sdxl", 4, 1, 234],
  ["rtx4090", "sdxl", 25, 2, 3400],
  ["rtx4090", "sdxl", 4, 1, 700],
  ["a100", "sd15", 50, 2, 820],
  ["h100", "sd15", 50, 2, 750],
];

describe("GpuTimes", () => {
  it.each(PUBLISHED)(
    "adds up to what is published: %s, %s, %i steps of %i rows in %i ms",
    (gpu, model, steps, rows, ms) => {
      const times = new GpuTimes(gpu, model);
      const area = model === "sdxl" ? 128 ** 2 : 64 ** 2;
      const total =
        times.textEncodeMs(rows) + steps * times.stepMs({ area, rows }) + times.decodeMs({ area, pictures: 1 });
      expect(Math.abs(total / ms - 1)).toBeLessThan(0.02);
    },
  );

  it("gains from batching what is published: much at 512x512, hardly anything at 1024x1024", () => {
    const gain = (model: SimulatedModel, area: number, pictures: number) => {
      const times = new GpuTimes("a100", model);
      return (pictures * times.stepMs({ area, rows: 2 })) / times.stepMs({ area, rows: 2 * pictures });
    };
    expect(gain("sd15", 64 ** 2, 4)).toBeCloseTo(2, 6);
    expect(gain("sdxl", 128 ** 2, 4)).toBeGreaterThan(1.01);
    expect(gain("sdxl", 128 ** 2, 4)).toBeLessThan(1.09);
    expect(gain("sdxl", 96 ** 2, 4)).toBeGreaterThan(gain("sdxl", 128 ** 2, 4));
  });

  it.each(SIMULATED_GPUS)("takes longer for more rows, more pixels and more pictures on %s", (gpu) => {
    for (const model of ["sd15", "sdxl"] as const) {
      const times = new GpuTimes(gpu, model);
      const areas = [16, 32, 48, 64, 80, 96, 128, 160, 192].map((side) => side ** 2);
      const bySize = areas.map((area) => times.stepMs({ area, rows: 2 }));
      expect(bySize).toEqual(bySize.toSorted((a, b) => a - b));
      const byRows = [1, 2, 4, 8, 16].map((rows) => times.stepMs({ area: 64 ** 2, rows }));
      expect(byRows).toEqual(byRows.toSorted((a, b) => a - b));
      expect(byRows[0]).toBeGreaterThan(0);
      expect(times.decodeMs({ area: 64 ** 2, pictures: 3 })).toBeCloseTo(
        3 * times.decodeMs({ area: 64 ** 2, pictures: 1 }),
      );
    }
  });
});
