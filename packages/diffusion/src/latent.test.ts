import { describe, expect, it } from "vitest";
import { guide, latentShape, latentSize } from "./latent.ts";
import { upscaleLatent } from "./upscale-latent.ts";

describe("latentShape", () => {
  it("is an eighth of the image each way", () => {
    expect(latentShape({ width: 768, height: 512 })).toEqual({ channels: 4, height: 64, width: 96 });
    expect(latentSize(latentShape({ width: 256, height: 256 }))).toBe(4096);
  });

  it("takes a size that does not divide for a bug: the gateway has refused it", () => {
    expect(() => latentShape({ width: 260, height: 256 })).toThrow(/width 260/);
    expect(() => latentShape({ width: 256, height: 0 })).toThrow(/height 0/);
  });
});

describe("guide", () => {
  const unconditional = Float32Array.of(0, 1, -2);
  const conditional = Float32Array.of(1, 1, 2);

  it("goes past the conditional prediction, away from the unconditional one", () => {
    expect(guide(unconditional, conditional, 2.5)).toEqual(Float32Array.of(2.5, 1, 8));
  });

  it("is the conditional prediction at scale 1, and the other at 0", () => {
    expect(guide(unconditional, conditional, 1)).toEqual(conditional);
    expect(guide(unconditional, conditional, 0)).toEqual(unconditional);
  });
});

describe("upscaleLatent", () => {
  const from = { channels: 2, height: 3, width: 5 };
  const to = { channels: 2, height: 6, width: 10 };

  it.each(["nearest", "bilinear", "bicubic"] as const)("keeps a flat latent flat, each channel its own: %s", (mode) => {
    const flat = Float32Array.from({ length: latentSize(from) }, (_, i) => (i < 15 ? 0.25 : -3));
    const upscaled = upscaleLatent(flat, from, to, mode);
    upscaled.forEach((x, i) => {
      expect(x).toBeCloseTo(i < 60 ? 0.25 : -3, 6);
    });
  });

  it("draws a straight slope straight, and level at the border: bilinear", () => {
    const slope = Float32Array.from({ length: latentSize(from) }, (_, i) => i % 5);
    const row = upscaleLatent(slope, from, to, "bilinear").slice(0, 10);
    expect(row).toEqual(Float32Array.of(0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4));
  });
});
