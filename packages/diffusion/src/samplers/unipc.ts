import { uniPcSchedule } from "../multistep-schedule.ts";
import { levelOfRatio, type NoiseLevel, predictX0 } from "../noise-schedule.ts";
import { checkStep, type SamplerPlan, type StepInput, type StepOutput, startIndex } from "../sampler-plan.ts";
import type { PredictionType, SchedulerConfig } from "../scheduler-config.ts";
import { mix } from "../vector.ts";

const ORDER = 2;

/**
 * UniPC of order 2: each step first corrects the latent that it was given, with the prediction just made for it, and
 * then predicts the next one.
 *
 * History: the corrected latent of the step before, then the x0 predicted there, then the x0 predicted before that.
 * Order: predictor and corrector start at first order and reach the second at the second step; the last step is of
 * first order again.
 *
 * Source: Zhao et al., "UniPC", arXiv:2302.04867, algorithms 1 and 2 with B(h) = exp(h) - 1 ("bh2"), predicting x0.
 * Names and special cases: diffusers' UniPCMultistepScheduler.
 */
export class UniPcPlan implements SamplerPlan {
  readonly sampler = "unipc";
  readonly timesteps: Float32Array;
  readonly initNoiseSigma = 1;
  readonly drawsNoise = false;
  readonly #levels: readonly NoiseLevel[]; // one more than there are steps
  readonly #prediction: PredictionType;
  readonly #lowerOrderFinal: boolean;

  constructor(config: SchedulerConfig, steps: number) {
    const { timesteps, sigmas } = uniPcSchedule(config, steps);
    this.timesteps = timesteps;
    this.#levels = Array.from(sigmas, levelOfRatio);
    this.#prediction = config.prediction_type ?? "epsilon";
    this.#lowerOrderFinal = config.lower_order_final ?? true;
  }

  get stepCount(): number {
    return this.timesteps.length;
  }

  modelInput(latent: Float32Array): Float32Array {
    return latent;
  }

  step(input: StepInput): StepOutput {
    checkStep(this, input);
    const { stepIndex, history } = input;
    const [lastLatent, ...x0s] = history.arrays;
    const x0 = predictX0(this.#prediction, this.#levels[stepIndex]!, input.latent, input.modelOutput);

    const latent = lastLatent === undefined ? input.latent : this.#correct(stepIndex, lastLatent, x0s, x0);
    const latestX0s = [x0, ...x0s].slice(0, ORDER);
    const next = this.#predict(stepIndex, latent, latestX0s);
    return { latent: next, x0, history: { arrays: [latent, ...latestX0s] } };
  }

  /** The latent at `stepIndex + 1`, from the corrected one at `stepIndex` and the predictions so far, newest first. */
  #predict(stepIndex: number, latent: Float32Array, [x0, previousX0]: readonly Float32Array[]): Float32Array {
    const { keep, pull } = this.#interval(stepIndex);
    if (previousX0 === undefined || this.#orderCap(stepIndex) < 2) return mix(keep, latent, pull, x0!);

    const behind = (pull * 0.5) / this.#lookBack(stepIndex);
    return mix(1, mix(keep, latent, pull - behind, x0!), behind, previousX0);
  }

  /** The latent at `stepIndex` over again, from the one before it, now that the model has seen where it led. */
  #correct(
    stepIndex: number,
    lastLatent: Float32Array,
    [x0, previousX0]: readonly Float32Array[],
    newX0: Float32Array,
  ): Float32Array {
    const { keep, pull, h } = this.#interval(stepIndex - 1);
    if (previousX0 === undefined) return mix(1, mix(keep, lastLatent, pull * 0.5, x0!), pull * 0.5, newX0);

    const lookBack = this.#lookBack(stepIndex - 1);
    const weights = correctorWeights(h, lookBack);
    const behind = (pull * weights.back) / lookBack;
    const ahead = pull * weights.ahead;
    return mix(1, mix(keep, lastLatent, pull - behind - ahead, x0!), 1, mix(behind, previousX0, ahead, newX0));
  }

  #orderCap(stepIndex: number): number {
    return this.#lowerOrderFinal ? this.stepCount - stepIndex : ORDER;
  }

  /** From `stepIndex` to the next: length in lambda, and the shares of the latent and of x0 at first order. */
  #interval(stepIndex: number): { h: number; keep: number; pull: number } {
    const from = this.#levels[stepIndex]!;
    const to = this.#levels[stepIndex + 1]!;
    const h = to.lambda - from.lambda;
    return { h, keep: to.sigma / from.sigma, pull: -to.alpha * Math.expm1(-h) };
  }

  /** r of the paper: where the step before `stepIndex` began, in units of the step ahead. Negative. */
  #lookBack(stepIndex: number): number {
    return -this.#interval(stepIndex - 1).h / this.#interval(stepIndex).h;
  }

  addNoise(clean: Float32Array, noise: Float32Array, stepIndex: number): Float32Array {
    const { alpha, sigma } = this.#levels[stepIndex]!;
    return mix(alpha, clean, sigma, noise);
  }

  startIndex(strength: number): number {
    return startIndex(this.stepCount, strength);
  }
}

/**
 * The weights of the slope behind and of the difference ahead, for which the corrector is exact to third order: the
 * solution of back + ahead = b1, lookBack * back + ahead = b2.
 */
function correctorWeights(h: number, lookBack: number): { back: number; ahead: number } {
  const phi1 = Math.expm1(-h) / -h;
  const phi2 = (phi1 - 1) / -h;
  const phi3 = (phi2 - 0.5) / -h;
  const b1 = phi2 / phi1;
  const b2 = (2 * phi3) / phi1;
  const back = (b1 - b2) / (1 - lookBack);
  return { back, ahead: b1 - back };
}
