import { invariant, ServingError } from "@atelier/core";

export type SamplerName = "dpmpp_2m" | "dpmpp_2m_sde" | "euler" | "euler_a" | "ddim" | "unipc" | "lcm";

/**
 * What one request's earlier steps left for its next one; newest first, each shaped as the latent. Plain data, so
 * that a half-finished image can be written down and go on elsewhere. What each entry means is the sampler's own.
 */
export interface SamplerHistory {
  readonly arrays: readonly Float32Array[];
}

/** A request's history before its first step, at whatever step index that is. */
export const EMPTY_HISTORY: SamplerHistory = Object.freeze({ arrays: Object.freeze([]) });

export interface StepInput {
  readonly stepIndex: number; // the step to take, in 0..stepCount-1
  readonly latent: Float32Array;
  readonly modelOutput: Float32Array; // for `modelInput(latent, stepIndex)`, after guidance; may stay in the history
  readonly history: SamplerHistory;
  /** Draws unit normal noise of the latent's shape. Called only by samplers that need it, as often as diffusers would. */
  readonly noise: () => Float32Array;
}

export interface StepOutput {
  readonly latent: Float32Array;
  readonly x0: Float32Array; // the clean image as predicted before this step: a preview
  readonly history: SamplerHistory;
}

/**
 * All of a sampler that depends on the noise schedule and the step count, and nothing that belongs to one request: one
 * plan serves any number of requests, each at a step of its own.
 *
 * Shapes: every array is one latent [channels, height / 8, width / 8], flat and row-major. Units: VAE units, about
 * unit variance for a clean image. Whether noise is added to a latent or mixed into it is the sampler's own convention;
 * `initNoiseSigma`, `modelInput` and `addNoise` keep to it.
 */
export interface SamplerPlan {
  readonly sampler: SamplerName;
  readonly stepCount: number; // model evaluations
  readonly timesteps: Float32Array; // what the model is told at each step; fractional for some
  readonly initNoiseSigma: number; // the first latent is unit noise times this
  readonly drawsNoise: boolean; // one latent of it at every step; the last step may do without
  /** What the model sees at `stepIndex`. May be `latent` itself: read it, do not write to it. */
  modelInput(latent: Float32Array, stepIndex: number): Float32Array;
  /** Takes one latent from noise level `stepIndex` to the next. Mutates nothing. */
  step(input: StepInput): StepOutput;
  /** Brings a clean latent to the noise level before `stepIndex`, for image to image. */
  addNoise(clean: Float32Array, noise: Float32Array, stepIndex: number): Float32Array;
  /**
   * The step at which image to image starts, for `strength` in (0, 1]; 1 starts at step 0, from noise alone.
   * @throws ServingError INVALID_REQUEST when `strength` leaves no step to take.
   */
  startIndex(strength: number): number;
}

export function checkStep(plan: SamplerPlan, { stepIndex, latent, modelOutput }: StepInput): void {
  invariant(0 <= stepIndex && stepIndex < plan.stepCount, `step ${stepIndex} is one of ${plan.stepCount}`);
  invariant(latent.length === modelOutput.length, "latent and model output have one shape");
}

/** How every plan answers `startIndex`. Source: `get_timesteps` of diffusers' image-to-image pipelines. */
export function startIndex(stepCount: number, strength: number): number {
  const stepsLeft = Math.min(Math.trunc(stepCount * strength), stepCount);
  if (!(stepsLeft >= 1)) {
    const message = `strength ${strength} of ${stepCount} steps leaves none to take`;
    throw new ServingError("INVALID_REQUEST", message, { field: "strength" });
  }
  return stepCount - stepsLeft;
}
