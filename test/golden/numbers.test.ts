import {
  alphasCumprod,
  readSchedulerConfig,
  TorchGenerator,
  type UpscaleMode,
  upscaleLatent,
} from "@atelier/diffusion";
import { describe, expect, it } from "vitest";
import { largestError, readGolden, type Span } from "./golden-file.ts";

describe("TorchGenerator", () => {
  const golden = readGolden<{ seed: string; sizes: number[]; normals?: Span; head?: Span; tail?: Span; last?: Span }>(
    "noise",
  );
  const seeds = [...new Set(golden.cases.map((one) => one.seed))];

  it.each(seeds)("draws torch's normal numbers for seed %s, in every size and order", (seed) => {
    for (const one of golden.cases.filter((other) => other.seed === seed)) {
      const generator = new TorchGenerator(BigInt(seed));
      const last = one.sizes.map((size) => generator.randn(size)).at(-1)!;
      const about = `sizes ${one.sizes}`;
      if (one.normals) expect(largestError(last, golden.array(one.normals)), about).toBeLessThan(1e-5);
      if (one.last) expect(largestError(last, golden.array(one.last)), about).toBeLessThan(1e-5);
      if (one.head) expect(largestError(last.subarray(0, 64), golden.array(one.head)), about).toBeLessThan(1e-5);
      if (one.tail) expect(largestError(last.subarray(-64), golden.array(one.tail)), about).toBeLessThan(1e-5);
    }
  });
});

describe("alphasCumprod", () => {
  const golden = readGolden<{ config: object; alphasCumprod: Span }>("schedules");

  it.each(golden.cases)(
    "has diffusers' noise levels to the last bits of float32: $config",
    ({ config, alphasCumprod: span }) => {
      expect(largestError(alphasCumprod(readSchedulerConfig(config)), golden.array(span))).toBeLessThan(1.2e-7);
    },
  );
});

describe("upscaleLatent", () => {
  type Side = [height: number, width: number];
  interface Upscale {
    readonly mode: UpscaleMode;
    readonly source: Side;
    readonly target: Side;
    readonly upscaled: Span;
  }
  const golden = readGolden<Upscale, { channels: number; seed: number }>("upscales");

  it.each(golden.cases)("does torch's $mode from $source to $target", ({ mode, source, target, upscaled }) => {
    const shape = ([height, width]: Side) => ({ channels: golden.channels, height, width });
    const latent = new TorchGenerator(golden.seed).randn(golden.channels * source[0] * source[1]);
    const actual = upscaleLatent(latent, shape(source), shape(target), mode);
    expect(largestError(actual, golden.array(upscaled))).toBeLessThan(1e-5);
  });
});
