import { invariant } from "@atelier/core";
import { linspaceFloat32 } from "./number-series.ts";
import type { PredictionType, SchedulerConfig } from "./scheduler-config.ts";
import { mix } from "./vector.ts";

/** alpha² + sigma² = 1, and lambda = log(alpha / sigma), half the log signal-to-noise ratio. */
export interface NoiseLevel {
  readonly alpha: number; // share of the clean image
  readonly sigma: number; // share of the noise
  readonly lambda: number; // Infinity at a clean image
}

/** The level at which noise is `ratio` times the signal: the "sigma" of Karras et al. and of Euler's method. */
export function levelOfRatio(ratio: number): NoiseLevel {
  const alpha = 1 / Math.sqrt(ratio ** 2 + 1);
  return { alpha, sigma: ratio * alpha, lambda: -Math.log(ratio) };
}

/** The level at which `alphaCumprod` of the variance is signal: the "alpha bar" of Ho et al. */
export function levelOfAlphaCumprod(alphaCumprod: number): NoiseLevel {
  const alpha = Math.sqrt(alphaCumprod);
  const sigma = Math.sqrt(1 - alphaCumprod);
  return { alpha, sigma, lambda: Math.log(alpha / sigma) };
}

/**
 * What a model's output says about the clean image.
 *
 * Shapes: `latent`, `output` and the result are one latent. `latent` is variance-preserving: alpha * x0 + sigma * noise.
 * Source: Salimans and Ho, "Progressive Distillation", arXiv:2202.00512, section 4 and appendix D.
 */
export function predictX0(
  prediction: PredictionType,
  { alpha, sigma }: NoiseLevel,
  latent: Float32Array,
  output: Float32Array,
): Float32Array {
  switch (prediction) {
    case "epsilon":
      return mix(1 / alpha, latent, -sigma / alpha, output);
    case "v_prediction":
      return mix(alpha, latent, -sigma, output);
    case "sample":
      return output;
  }
}

/** What a model's output says about the noise; shapes and source as in `predictX0`. */
export function predictNoise(
  prediction: PredictionType,
  { alpha, sigma }: NoiseLevel,
  latent: Float32Array,
  output: Float32Array,
): Float32Array {
  switch (prediction) {
    case "epsilon":
      return output;
    case "v_prediction":
      return mix(alpha, output, sigma, latent);
    case "sample":
      return mix(1 / sigma, latent, -alpha / sigma, output);
  }
}

/** Where the betas come from when a configuration does not say; diffusers' classes disagree. */
export interface BetaDefaults {
  readonly betaStart: number;
  readonly betaEnd: number;
  readonly betaSchedule: NonNullable<SchedulerConfig["beta_schedule"]>;
}

export const BETA_DEFAULTS: BetaDefaults = { betaStart: 0.0001, betaEnd: 0.02, betaSchedule: "linear" };

/**
 * The share of signal in the variance at each training timestep, from nearly 1 down to nearly (or exactly) 0.
 *
 * Rounded to float32 wherever torch rounds: at the clean end the noise is 1 - 0.9991..., and a last bit there is a
 * hundred-thousandth of it.
 */
export function alphasCumprod(config: SchedulerConfig, defaults: BetaDefaults = BETA_DEFAULTS): Float32Array {
  const betas = trainingBetas(config, defaults);
  const alphas = config.rescale_betas_zero_snr ? zeroTerminalAlphas(betas) : betas.map((beta) => 1 - beta);
  return cumulativeProduct(alphas);
}

/**
 * The noise-to-signal ratio at each training timestep, rising; all finite.
 *
 * A schedule that ends on pure noise has an infinite one there; diffusers stops at the ratio 4096, and so do we.
 */
export function noiseRatios(alphas: Float32Array, zeroTerminalSnr: boolean): Float32Array {
  return alphas.map((alpha, i) => {
    const signal = zeroTerminalSnr && i === alphas.length - 1 ? 2 ** -24 : alpha;
    return Math.sqrt(Math.fround(Math.fround(1 - signal) / signal));
  });
}

function trainingBetas(config: SchedulerConfig, defaults: BetaDefaults): Float32Array {
  if (config.trained_betas) return Float32Array.from(config.trained_betas);
  const count = config.num_train_timesteps ?? 1000;
  const start = config.beta_start ?? defaults.betaStart;
  const end = config.beta_end ?? defaults.betaEnd;
  switch (config.beta_schedule ?? defaults.betaSchedule) {
    case "linear":
      return linspaceFloat32(start, end, count);
    case "scaled_linear":
      return linspaceFloat32(Math.sqrt(start), Math.sqrt(end), count).map((root) => root ** 2);
    case "squaredcos_cap_v2":
      return Float32Array.from({ length: count }, (_, i) =>
        Math.min(1 - cosine((i + 1) / count) / cosine(i / count), 0.999),
      );
  }
}

/** Source: Nichol and Dhariwal, "Improved Denoising Diffusion", arXiv:2102.09672, equation 17. */
function cosine(t: number): number {
  return Math.cos((((t + 0.008) / 1.008) * Math.PI) / 2) ** 2;
}

/**
 * Shifts and stretches the square roots of the cumulative alphas so that the last is 0 and the first stays.
 * Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891, algorithm 1.
 */
function zeroTerminalAlphas(betas: Float32Array): Float32Array {
  const roots = cumulativeProduct(betas.map((beta) => 1 - beta)).map((alpha) => Math.sqrt(alpha));
  const first = roots[0]!;
  const last = roots.at(-1)!;
  invariant(first > last, "a schedule has more noise at its end than at its start");
  const stretch = Math.fround(first / Math.fround(first - last));
  const bars = roots.map((root) => Math.fround(root - last) * stretch).map((root) => root ** 2);
  // Back to betas and forth again, as the reference goes: each way rounds.
  const rescaled = bars.map((bar, i) => (i === 0 ? bar : bar / bars[i - 1]!)).map((alpha) => 1 - alpha);
  return rescaled.map((beta) => 1 - beta);
}

/** torch accumulates in double precision and rounds each entry it stores. */
function cumulativeProduct(values: Float32Array): Float32Array {
  let product = 1;
  return values.map((value) => {
    product *= value;
    return product;
  });
}
