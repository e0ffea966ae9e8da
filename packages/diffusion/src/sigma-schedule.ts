import { interpolate, linspace } from "./number-series.ts";

/**
 * Noise-to-signal ratios between two bounds, `steps` of them, falling, dense at the clean end.
 * Source: Karras et al., "Elucidating the Design Space", arXiv:2206.00364, equation 5, with rho = 7.
 */
export function karrasSigmas({ min, max, steps }: { min: number; max: number; steps: number }): number[] {
  const rho = 7;
  const least = min ** (1 / rho);
  const most = max ** (1 / rho);
  return linspace(0, 1, steps).map((ramp) => (most + ramp * (least - most)) ** rho);
}

/** The same, evenly spaced in their logarithm. */
export function exponentialSigmas({ min, max, steps }: { min: number; max: number; steps: number }): number[] {
  return linspace(Math.log(max), Math.log(min), steps).map(Math.exp);
}

/** The training schedule's noise-to-signal ratio at each of `timesteps`, fractional ones between their neighbours. */
export function sigmasAt(timesteps: readonly number[], ratios: Float32Array): number[] {
  return timesteps.map((t) => interpolate(ratios, t));
}

/**
 * The training timestep, fractional, whose noise-to-signal ratio is `sigma`; linear in the logarithm between
 * neighbours, and one of the ends for a ratio beyond them.
 */
export function timestepOf(sigma: number, ratios: Float32Array): number {
  const logSigma = Math.log(sigma);
  let low = 0;
  while (low < ratios.length - 2 && logRatio(ratios, low + 1) <= logSigma) low++;
  const from = logRatio(ratios, low);
  const to = logRatio(ratios, low + 1);
  return low + Math.min(1, Math.max(0, (logSigma - from) / (to - from)));
}

/** In float32, as the reference keeps its table. */
function logRatio(ratios: Float32Array, i: number): number {
  return Math.fround(Math.log(ratios[i]!));
}
