import { describe, expect, it } from "vitest";
import { planPhases } from "./phases.ts";

describe("planPhases", () => {
  it("makes an image up to the threshold in one pass", () => {
    expect(plan({ width: 320, height: 320 })).toEqual({
      shape: { channels: 4, height: 40, width: 40 },
      firstStep: 0,
      refine: undefined,
      hiresFix: undefined,
      steps: 20,
    });
  });

  it("makes a larger one at the native size first, then refines it at the size asked for", () => {
    expect(plan({ width: 512, height: 512 })).toEqual({
      shape: { channels: 4, height: 32, width: 32 },
      firstStep: 0,
      refine: { shape: { channels: 4, height: 64, width: 64 }, upscale: "bicubic", firstStep: 11 },
      hiresFix: { nativeWidth: 256, nativeHeight: 256, strength: 0.45, upscale: "bicubic" },
      steps: 20 + 9,
    });
  });

  it.each([
    [
      { width: 512, height: 768 },
      { nativeWidth: 208, nativeHeight: 312 },
    ],
    [
      { width: 1024, height: 512 },
      { nativeWidth: 360, nativeHeight: 184 },
    ],
    [
      { width: 1024, height: 1024 },
      { nativeWidth: 256, nativeHeight: 256 },
    ],
  ])("keeps the aspect of %o to within the multiple", (size, native) => {
    expect(plan(size).hiresFix).toMatchObject(native);
  });

  it("goes no further down than the upscale may go up", () => {
    const hiresFix = { ...MANIFEST.hiresFix, latentScaleMax: 2 };
    expect(plan({ width: 1024, height: 1024 }, { hiresFix }).hiresFix).toMatchObject({ nativeWidth: 512 });
  });

  it("goes no further down than the model's least side, and makes one pass where that leaves nothing to gain", () => {
    expect(plan({ width: 1024, height: 256 }).hiresFix).toMatchObject({ nativeWidth: 512, nativeHeight: 128 });
    expect(plan({ width: 1024, height: 128 }).hiresFix).toBeUndefined();
  });

  it("refines at least one step, however few there are", () => {
    const phases = planPhases({ width: 512, height: 512 }, MANIFEST, planOf(1), 4);
    expect(phases.refine?.firstStep).toBe(0);
    expect(phases.steps).toBe(2);
  });

  it("makes an image from another in one pass at any size, with the strength's share of the steps", () => {
    expect(plan({ width: 512, height: 512, strength: 0.6 })).toEqual({
      shape: { channels: 4, height: 64, width: 64 },
      firstStep: 8,
      refine: undefined,
      hiresFix: undefined,
      steps: 12,
    });
  });

  it("makes everything in one pass where the manifest names no hires fix", () => {
    expect(plan({ width: 1024, height: 1024 }, { hiresFix: undefined }).steps).toBe(20);
  });
});

const MANIFEST = {
  nativeSize: { width: 256, height: 256 },
  sizeMultiple: 8,
  sizeMin: 128,
  hiresFix: { abovePixels: 320 * 320, strength: 0.45, upscale: "bicubic" as const },
};

function plan(size: Parameters<typeof planPhases>[0], overrides: Partial<Parameters<typeof planPhases>[1]> = {}) {
  return planPhases(size, { ...MANIFEST, ...overrides }, planOf(20), 4);
}

function planOf(stepCount: number) {
  return { stepCount, startIndex: (strength: number) => stepCount - Math.trunc(stepCount * strength) };
}
