import { ServingError } from "@atelier/core";
import {
  alphasCumprod,
  type BetaDefaults,
  levelOfAlphaCumprod,
  type NoiseLevel,
  predictX0,
} from "../noise-schedule.ts";
import { linspace } from "../number-series.ts";
import { checkStep, type SamplerPlan, type StepInput, type StepOutput, startIndex } from "../sampler-plan.ts";
import type { PredictionType, SchedulerConfig } from "../scheduler-config.ts";
import { mix } from "../vector.ts";
import { clip, refuseEpsilonOfPureNoise } from "./ddim.ts";

const BETAS: BetaDefaults = { betaStart: 0.00085, betaEnd: 0.012, betaSchedule: "scaled_linear" };
const SIGMA_DATA = 0.5; // the standard deviation of clean latents that consistency models assume

/**
 * Latent consistency sampling: predict the clean image, put fresh noise on it, less each time. For models distilled
 * to it, in 1 to 8 steps; others need many more and gain nothing. No history.
 *
 * Source: Luo et al., "Latent Consistency Models", arXiv:2310.04378, algorithm 3 and equation 9. Names and special
 * cases: diffusers' LCMScheduler.
 */
export class LcmPlan implements SamplerPlan {
  readonly sampler = "lcm";
  readonly timesteps: Float32Array;
  readonly initNoiseSigma = 1;
  readonly drawsNoise = true;
  readonly #levels: readonly NoiseLevel[];
  readonly #prediction: PredictionType;
  readonly #x0Max: number;
  readonly #timestepScaling: number;

  constructor(config: SchedulerConfig, steps: number) {
    const alphas = alphasCumprod(config, BETAS);
    this.timesteps = distilledTimesteps(alphas.length, config.original_inference_steps ?? 50, steps);
    this.#levels = Array.from(this.timesteps, (t) => levelOfAlphaCumprod(alphas[t]!));
    this.#prediction = config.prediction_type ?? "epsilon";
    this.#x0Max = (config.clip_sample ?? false) ? (config.clip_sample_range ?? 1) : Infinity;
    this.#timestepScaling = config.timestep_scaling ?? 10;
    refuseEpsilonOfPureNoise(this.#prediction, this.#levels);
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
    const predicted = clip(predictX0(this.#prediction, this.#levels[stepIndex]!, latent, modelOutput), this.#x0Max);
    const { skip, out } = this.#boundaryScalings(stepIndex);
    const x0 = mix(out, predicted, skip, latent);

    const to = this.#levels[stepIndex + 1];
    const next = to === undefined ? x0 : mix(to.alpha, x0, to.sigma, input.noise());
    return { latent: next, x0, history };
  }

  /** What makes the consistency function the identity at timestep 0. */
  #boundaryScalings(stepIndex: number): { skip: number; out: number } {
    const t = this.timesteps[stepIndex]! * this.#timestepScaling;
    const variance = t ** 2 + SIGMA_DATA ** 2;
    return { skip: SIGMA_DATA ** 2 / variance, out: t / Math.sqrt(variance) };
  }

  addNoise(clean: Float32Array, noise: Float32Array, stepIndex: number): Float32Array {
    const { alpha, sigma } = this.#levels[stepIndex]!;
    return mix(alpha, clean, sigma, noise);
  }

  startIndex(strength: number): number {
    return startIndex(this.stepCount, strength);
  }
}

/** `steps` of the timesteps that a model was distilled on, evenly among them and noisiest first. */
function distilledTimesteps(trainSteps: number, distilledSteps: number, steps: number): Float32Array {
  if (distilledSteps > trainSteps) {
    const message = `original_inference_steps is ${distilledSteps}, num_train_timesteps ${trainSteps}`;
    throw new ServingError("INVALID_BUNDLE", `scheduler_config.json: ${message}`);
  }
  if (steps > distilledSteps) {
    const message = `steps ${steps}: lcm takes at most ${distilledSteps}, the steps its model was distilled on`;
    throw new ServingError("INVALID_REQUEST", message, { field: "steps" });
  }
  const stride = Math.floor(trainSteps / distilledSteps);
  const indices = linspace(0, distilledSteps, steps + 1)
    .slice(0, -1)
    .map(Math.floor);
  return Float32Array.from(indices, (index) => (distilledSteps - index) * stride - 1);
}
