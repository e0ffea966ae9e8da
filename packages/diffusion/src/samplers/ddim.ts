import { ServingError } from "@atelier/core";
import { alphasCumprod, levelOfAlphaCumprod, type NoiseLevel, predictNoise, predictX0 } from "../noise-schedule.ts";
import { roundHalfEven } from "../number-series.ts";
import { checkStep, type SamplerPlan, type StepInput, type StepOutput, startIndex } from "../sampler-plan.ts";
import type { PredictionType, SchedulerConfig } from "../scheduler-config.ts";
import { timestepsWithEnd } from "../timestep-spacing.ts";
import { mix } from "../vector.ts";

/**
 * DDIM with eta = 0: deterministic, first order. No history.
 *
 * Source: Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502, equation 12. Names and special cases:
 * diffusers' DDIMScheduler.
 */
export class DdimPlan implements SamplerPlan {
  readonly sampler = "ddim";
  readonly timesteps: Float32Array;
  readonly initNoiseSigma = 1;
  readonly drawsNoise = false;
  readonly #from: readonly NoiseLevel[];
  readonly #to: readonly NoiseLevel[]; // not simply the next `#from`: the stride is fixed, whatever the spacing
  readonly #prediction: PredictionType;
  readonly #x0Max: number;

  constructor(config: SchedulerConfig, steps: number) {
    const alphas = alphasCumprod(config);
    const spacing = config.timestep_spacing ?? "leading";
    const options = { spacing, steps, trainSteps: alphas.length, stepsOffset: config.steps_offset ?? 0 };
    const timesteps = timestepsWithEnd(options).map(roundHalfEven);
    if (timesteps[0]! >= alphas.length) {
      const message = `steps ${steps} asks for timestep ${timesteps[0]} of a schedule of ${alphas.length}`;
      throw new ServingError("INVALID_REQUEST", message, { field: "steps" });
    }
    const stride = Math.floor(alphas.length / steps);
    const finalAlpha = (config.set_alpha_to_one ?? true) ? 1 : alphas[0]!;
    this.timesteps = Float32Array.from(timesteps);
    this.#from = timesteps.map((t) => levelOfAlphaCumprod(alphas[t]!));
    this.#to = timesteps.map((t) => levelOfAlphaCumprod(t >= stride ? alphas[t - stride]! : finalAlpha));
    this.#prediction = config.prediction_type ?? "epsilon";
    this.#x0Max = (config.clip_sample ?? true) ? (config.clip_sample_range ?? 1) : Infinity;
    refuseEpsilonOfPureNoise(this.#prediction, this.#from);
  }

  get stepCount(): number {
    return this.timesteps.length;
  }

  modelInput(latent: Float32Array): Float32Array {
    return latent;
  }

  step(input: StepInput): StepOutput {
    checkStep(this, input);
    const { stepIndex, latent, modelOutput, history } = input;
    const from = this.#from[stepIndex]!;
    const to = this.#to[stepIndex]!;
    const x0 = clip(predictX0(this.#prediction, from, latent, modelOutput), this.#x0Max);
    // From the model's output rather than from the clipped x0: what the latent has beyond the clip stays in it.
    const noise = predictNoise(this.#prediction, from, latent, modelOutput);
    return { latent: mix(to.alpha, x0, to.sigma, noise), x0, history };
  }

  addNoise(clean: Float32Array, noise: Float32Array, stepIndex: number): Float32Array {
    const { alpha, sigma } = this.#from[stepIndex]!;
    return mix(alpha, clean, sigma, noise);
  }

  startIndex(strength: number): number {
    return startIndex(this.stepCount, strength);
  }
}

/** Every entry of `x0` within -max..max. */
export function clip(x0: Float32Array, max: number): Float32Array {
  return max === Infinity ? x0 : x0.map((x) => Math.min(max, Math.max(-max, x)));
}

/** Where there is noise alone, knowing the noise says nothing of the image: x0 would be 0 / 0. */
export function refuseEpsilonOfPureNoise(prediction: PredictionType, levels: readonly NoiseLevel[]): void {
  if (prediction !== "epsilon" || levels.every((level) => level.alpha > 0)) return;
  const message = "scheduler_config.json: prediction_type is epsilon and rescale_betas_zero_snr true";
  throw new ServingError("INVALID_BUNDLE", `${message}: epsilon cannot be followed from zero signal`);
}
