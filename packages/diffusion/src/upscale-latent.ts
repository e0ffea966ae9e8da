import { invariant } from "@atelier/core";
import { type LatentShape, latentSize } from "./latent.ts";

export type UpscaleMode = "nearest" | "bilinear" | "bicubic";

/** One number of the result: the weighted sum of a few numbers of the source. */
interface Tap {
  readonly index: number;
  readonly weight: number;
}

/**
 * Resamples a latent to another height and width, down too (without smoothing first).
 *
 * Equal to `torch.nn.functional.interpolate(latent, size, mode, align_corners=False, antialias=False)` to 1e-5.
 * Allocates the result and one array of [channels, from.height, to.width].
 *
 * Source of the cubic weights: Keys, "Cubic Convolution Interpolation", IEEE TASSP 29(6), 1981, with a = -0.75.
 */
export function upscaleLatent(
  latent: Float32Array,
  from: LatentShape,
  to: LatentShape,
  mode: UpscaleMode,
): Float32Array {
  invariant(latent.length === latentSize(from), `a latent of ${latent.length} numbers has the shape it claims`);
  invariant(from.channels === to.channels, "upscaling keeps the channels");
  const wide = resampleRows(latent, from.width, to.width, mode);
  return resampleColumns(wide, { ...from, width: to.width }, to.height, mode);
}

function resampleRows(values: Float32Array, from: number, to: number, mode: UpscaleMode): Float32Array {
  const taps = tapsOf(from, to, mode);
  return Float32Array.from({ length: (values.length / from) * to }, (_, i) => {
    const rowStart = Math.floor(i / to) * from;
    return taps[i % to]!.reduce((sum, { index, weight }) => sum + weight * values[rowStart + index]!, 0);
  });
}

function resampleColumns(values: Float32Array, from: LatentShape, to: number, mode: UpscaleMode): Float32Array {
  const taps = tapsOf(from.height, to, mode);
  const { width } = from;
  return Float32Array.from({ length: from.channels * to * width }, (_, i) => {
    const row = Math.floor(i / width);
    const start = Math.floor(row / to) * from.height * width + (i % width);
    return taps[row % to]!.reduce((sum, { index, weight }) => sum + weight * values[start + index * width]!, 0);
  });
}

/** For each of `to` places along a line, the taps on the `from` numbers of the source. */
function tapsOf(from: number, to: number, mode: UpscaleMode): readonly (readonly Tap[])[] {
  const scale = Math.fround(from / to); // in float32, as torch: "nearest" falls to the other side by a last bit
  return Array.from({ length: to }, (_, i) => {
    if (mode === "nearest") return [{ index: Math.min(Math.floor(Math.fround(i * scale)), from - 1), weight: 1 }];
    const center = scale * (i + 0.5) - 0.5; // pixel centres lie on halves
    return mode === "bilinear" ? linearTaps(Math.max(0, center), from) : cubicTaps(center, from);
  });
}

function linearTaps(position: number, from: number): Tap[] {
  const below = Math.min(Math.floor(position), from - 1);
  const t = position - below;
  return [
    { index: below, weight: 1 - t },
    { index: Math.min(below + 1, from - 1), weight: t },
  ];
}

function cubicTaps(position: number, from: number): Tap[] {
  const below = Math.floor(position);
  return [-1, 0, 1, 2].map((offset) => ({
    index: Math.min(Math.max(below + offset, 0), from - 1), // the border repeats
    weight: cubicWeight(Math.abs(position - below - offset)),
  }));
}

function cubicWeight(distance: number): number {
  const a = -0.75;
  if (distance <= 1) return ((a + 2) * distance - (a + 3)) * distance ** 2 + 1;
  return a * (((distance - 5) * distance + 8) * distance - 4);
}
