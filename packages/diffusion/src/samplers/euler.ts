import { alphasCumprod, levelOfRatio, noiseRatios, predictX0 } from "../noise-schedule.ts";
import { checkStep, type SamplerPlan, type StepInput, type StepOutput, startIndex } from "../sampler-plan.ts";
import type { PredictionType, SchedulerConfig } from "../scheduler-config.ts";
import { exponentialSigmas, karrasSigmas, sigmasAt, timestepOf } from "../sigma-schedule.ts";
import { timestepsWithEnd } from "../timestep-spacing.ts";
import { mix, scale } from "../vector.ts";

/**
 * Euler's method, and its ancestral form, which steps too far down and adds fresh noise to come back.
 *
 * Latents are variance-exploding: x0 + sigma * noise, so the model sees them scaled. No history.
 *
 * Source: Karras et al., "Elucidating the Design Space", arXiv:2206.00364, algorithms 1 and 2 without churn; the
 * ancestral step: Song et al., arXiv:2011.13456, appendix F. Names and special cases: diffusers'
 * EulerDiscreteScheduler and EulerAncestralDiscreteScheduler.
 */
export class EulerPlan implements SamplerPlan {
  readonly sampler: "euler" | "euler_a";
  readonly timesteps: Float32Array;
  readonly initNoiseSigma: number;
  readonly #sigmas: Float32Array; // noise-to-signal ratio before each step, and after the last
  readonly #prediction: PredictionType;

  constructor(sampler: "euler" | "euler_a", config: SchedulerConfig, steps: number) {
    const { timesteps, sigmas } = sampler === "euler" ? eulerSchedule(config, steps) : ancestralSchedule(config, steps);
    this.sampler = sampler;
    this.timesteps = Float32Array.from(timesteps);
    this.#sigmas = Float32Array.from(sigmas);
    this.#prediction = config.prediction_type ?? "epsilon";
    // "leading" starts short of full noise, where the signal's own unit variance still counts.
    const first = Math.max(...this.#sigmas);
    this.initNoiseSigma = config.timestep_spacing === "leading" ? Math.sqrt(first ** 2 + 1) : first;
  }

  get drawsNoise(): boolean {
    return this.sampler === "euler_a";
  }

  get stepCount(): number {
    return this.timesteps.length;
  }

  modelInput(latent: Float32Array, stepIndex: number): Float32Array {
    return scale(levelOfRatio(this.#sigmas[stepIndex]!).alpha, latent);
  }

  step(input: StepInput): StepOutput {
    checkStep(this, input);
    const { stepIndex, latent, modelOutput, history } = input;
    const from = this.#sigmas[stepIndex]!;
    const to = this.#sigmas[stepIndex + 1]!;

    const x0 = predictX0(this.#prediction, levelOfRatio(from), this.modelInput(latent, stepIndex), modelOutput);
    if (this.sampler === "euler") return { latent: moveTo(to, from, latent, x0), x0, history };

    const up = Math.sqrt((to ** 2 * (from ** 2 - to ** 2)) / from ** 2);
    const down = Math.sqrt(to ** 2 - up ** 2);
    return { latent: mix(1, moveTo(down, from, latent, x0), up, input.noise()), x0, history };
  }

  addNoise(clean: Float32Array, noise: Float32Array, stepIndex: number): Float32Array {
    return mix(1, clean, this.#sigmas[stepIndex]!, noise);
  }

  startIndex(strength: number): number {
    return startIndex(this.stepCount, strength);
  }
}

/** Along the straight line from `latent` at ratio `from` towards `x0` at ratio 0. */
function moveTo(to: number, from: number, latent: Float32Array, x0: Float32Array): Float32Array {
  return mix(to / from, latent, 1 - to / from, x0);
}

interface Schedule {
  readonly timesteps: readonly number[];
  readonly sigmas: readonly number[]; // one more than timesteps
}

function eulerSchedule(config: SchedulerConfig, steps: number): Schedule {
  const ratios = ratiosOf(config);
  const last = config.final_sigmas_type === "sigma_min" ? ratios[0]! : 0;
  const timesteps = spacedTimesteps(config, steps, ratios);
  const sigmas = sigmasAt(timesteps, ratios);
  // Unlike the multistep solvers, from the ends that the spacing left rather than from those of the training schedule.
  const bounds = { min: config.sigma_min ?? sigmas.at(-1)!, max: config.sigma_max ?? sigmas[0]!, steps };
  if (!config.use_karras_sigmas && !config.use_exponential_sigmas) return { timesteps, sigmas: [...sigmas, last] };

  const spaced = config.use_karras_sigmas ? karrasSigmas(bounds) : exponentialSigmas(bounds);
  return { timesteps: spaced.map((sigma) => timestepOf(sigma, ratios)), sigmas: [...spaced, last] };
}

function ancestralSchedule(config: SchedulerConfig, steps: number): Schedule {
  const ratios = ratiosOf(config);
  const timesteps = spacedTimesteps(config, steps, ratios);
  return { timesteps, sigmas: [...sigmasAt(timesteps, ratios), 0] };
}

function ratiosOf(config: SchedulerConfig): Float32Array {
  return noiseRatios(alphasCumprod(config), config.rescale_betas_zero_snr ?? false);
}

function spacedTimesteps(config: SchedulerConfig, steps: number, ratios: Float32Array): number[] {
  const spacing = config.timestep_spacing ?? "linspace";
  const options = { spacing, steps, trainSteps: ratios.length, stepsOffset: config.steps_offset ?? 0 };
  return timestepsWithEnd(options);
}
