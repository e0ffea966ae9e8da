import { invariant } from "@atelier/core";
import { dpmSolverSchedule } from "../multistep-schedule.ts";
import { levelOfRatio, type NoiseLevel, predictX0 } from "../noise-schedule.ts";
import { checkStep, type SamplerPlan, type StepInput, type StepOutput, startIndex } from "../sampler-plan.ts";
import type { PredictionType, SchedulerConfig } from "../scheduler-config.ts";
import { mix } from "../vector.ts";

/** Below this many steps the solver does not trust its second order on the way to the last noise level. */
const FEW_STEPS = 15;

/**
 * DPM-Solver++(2M), the second-order multistep sampler; deterministic, or in its SDE form with fresh noise each step.
 *
 * History: the x0 predicted at the step before.
 * Order: second, except the first step (no history) and, going to a clean image, the last (lambda is infinite there),
 * which are of first order.
 *
 * Source: Lu et al., "DPM-Solver++", arXiv:2211.01095, algorithm 2 and, for the SDE form, appendix A. Names and
 * special cases: diffusers' DPMSolverMultistepScheduler with `solver_type` "midpoint".
 */
export class DpmSolverPlan implements SamplerPlan {
  readonly sampler: "dpmpp_2m" | "dpmpp_2m_sde";
  readonly timesteps: Float32Array;
  readonly initNoiseSigma = 1;
  readonly #levels: readonly NoiseLevel[]; // one more than there are steps
  readonly #prediction: PredictionType;
  readonly #firstOrderAtEnd: boolean;

  constructor(sampler: "dpmpp_2m" | "dpmpp_2m_sde", config: SchedulerConfig, steps: number) {
    const { timesteps, sigmas } = dpmSolverSchedule(config, steps);
    this.sampler = sampler;
    this.timesteps = timesteps;
    this.#levels = Array.from(sigmas, levelOfRatio);
    this.#prediction = config.prediction_type ?? "epsilon";
    const fewSteps = (config.lower_order_final ?? true) && timesteps.length < FEW_STEPS;
    this.#firstOrderAtEnd = sigmas.at(-1) === 0 || (config.euler_at_final ?? false) || fewSteps;
  }

  get drawsNoise(): boolean {
    return this.sampler === "dpmpp_2m_sde";
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
    const from = this.#levels[stepIndex]!;
    const to = this.#levels[stepIndex + 1]!;
    const h = to.lambda - from.lambda; // Infinity on the way to a clean image, where exp(-h) is 0

    const x0 = predictX0(this.#prediction, from, latent, modelOutput);
    const previousX0 = history.arrays[0];
    const firstOrder = previousX0 === undefined || (this.#firstOrderAtEnd && stepIndex === this.stepCount - 1);
    const target = firstOrder ? x0 : extrapolate(x0, previousX0, h / this.#stepBefore(stepIndex));
    const next =
      this.sampler === "dpmpp_2m"
        ? drift(from, to, h, latent, target)
        : diffuse(from, to, h, latent, target, input.noise());
    return { latent: next, x0, history: { arrays: [x0] } };
  }

  /** Length in lambda of the step that led to `stepIndex`. */
  #stepBefore(stepIndex: number): number {
    invariant(stepIndex > 0, "a first step has no history");
    return this.#levels[stepIndex]!.lambda - this.#levels[stepIndex - 1]!.lambda;
  }

  addNoise(clean: Float32Array, noise: Float32Array, stepIndex: number): Float32Array {
    const { alpha, sigma } = this.#levels[stepIndex]!;
    return mix(alpha, clean, sigma, noise);
  }

  startIndex(strength: number): number {
    return startIndex(this.stepCount, strength);
  }
}

/** Straight line through the last two predictions, read half a step ahead; `ratio` = h / h of the step before. */
function extrapolate(x0: Float32Array, previousX0: Float32Array, ratio: number): Float32Array {
  return mix(1 + ratio / 2, x0, -ratio / 2, previousX0);
}

function drift(from: NoiseLevel, to: NoiseLevel, h: number, latent: Float32Array, x0: Float32Array): Float32Array {
  return mix(to.sigma / from.sigma, latent, -to.alpha * Math.expm1(-h), x0);
}

/** As `drift`, pulling twice as hard and making up for it with noise. */
function diffuse(
  from: NoiseLevel,
  to: NoiseLevel,
  h: number,
  latent: Float32Array,
  x0: Float32Array,
  noise: Float32Array,
): Float32Array {
  const freshVariance = -Math.expm1(-2 * h);
  const pulled = mix((to.sigma / from.sigma) * Math.exp(-h), latent, to.alpha * freshVariance, x0);
  return mix(1, pulled, to.sigma * Math.sqrt(freshVariance), noise);
}
