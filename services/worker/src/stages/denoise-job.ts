import { type Deadline, invariant, ServingError } from "@atelier/core";
import {
  EMPTY_HISTORY,
  guide,
  type LatentShape,
  latentSize,
  type SamplerHistory,
  type SamplerPlan,
  TorchGenerator,
  type UpscaleMode,
  upscaleLatent,
} from "@atelier/diffusion";
import type { StepJob, UnetRow } from "./denoise.ts";
import type { LatentDistribution } from "./image-encode.ts";
import { DEFAULT_ORDER, type ServiceOrder } from "./order/service-order.ts";
import { timeIds } from "./time-ids.ts";

/** Text embeddings of one request, shared by its images. */
export interface Conditioning {
  readonly sequenceLength: number;
  /** [sequenceLength, width], flat. */
  readonly prompt: Float32Array;
  /** The same of the negative prompt; undefined where there is no guidance. */
  readonly negative: Float32Array | undefined;
  /** One embedding of each whole text, where the U-Net takes it: SDXL. */
  readonly pooled?: { readonly prompt: Float32Array; readonly negative: Float32Array | undefined };
}

/** The second phase of a two-phase generation: the same picture, refined at a larger size. */
export interface RefinePhase {
  readonly shape: LatentShape;
  readonly upscale: UpscaleMode;
  /** Step of the plan at which image to image starts. */
  readonly firstStep: number;
}

/** A picture to start from, instead of noise. */
export interface StartImage {
  readonly latents: LatentDistribution;
  /** Step of the plan at which it is joined. */
  readonly firstStep: number;
}

/**
 * The latent of another generation on its way, of the same shape and plan. The sampler knows nothing of the steps before,
 * and the noise from there on is what the job's own seed would have given.
 */
export interface StartLatent {
  readonly latent: Float32Array;
  /** The first step to run. */
  readonly firstStep: number;
}

export interface DenoiseJobOptions {
  readonly id: string;
  readonly model: string;
  readonly plan: SamplerPlan;
  readonly shape: LatentShape;
  /** What the image starts from; absent: from noise. */
  readonly start?: StartImage | StartLatent | undefined;
  readonly refine: RefinePhase | undefined;
  readonly conditioning: Conditioning;
  readonly guidanceScale: number;
  readonly seed: bigint;
  readonly deadline: Deadline;
  /** Where another process left the image, and the steps made until then; absent: it is begun here. */
  readonly from?: { readonly snapshot: JobSnapshot; readonly stepsDone: number } | undefined;
  /** Offer a snapshot after every this many steps; 0 or absent: never. */
  readonly checkpointEverySteps?: number;
  /** Offer a preview after every this many steps; 0 or absent: never. */
  readonly previewEverySteps?: number;
  /** Standard, of nobody in particular, where it is left out. */
  readonly order?: ServiceOrder;
}

/**
 * All that a job is at a step boundary: plain data, from which another process goes on with the same pixels. The text
 * embeddings are not in it: they are made again from the prompt.
 */
export interface JobSnapshot {
  readonly phase: 0 | 1;
  /** The next step to run. */
  readonly stepIndex: number;
  /** [channels, height, width] of the phase, flat. */
  readonly latent: Float32Array;
  /** The sampler's, newest first, each shaped as the latent. */
  readonly history: readonly Float32Array[];
  readonly noise: { readonly seed: bigint; readonly draws: number };
}

/** A clean latent as the sampler sees it coming. */
export interface Prediction {
  readonly x0: Float32Array;
  readonly shape: LatentShape;
}

/**
 * One image between noise and finished latent.
 *
 * What changes from step to step is small and plain: phase, step index, latent, sampler history and the position of
 * the noise generator.
 */
export class DenoiseJob implements StepJob {
  readonly id: string;
  readonly model: string;
  readonly sequenceLength: number;
  readonly extraInputs: string;
  readonly rowCount: number;
  readonly order: ServiceOrder;
  readonly #options: DenoiseJobOptions;
  readonly #generator: TorchGenerator;
  #phase: 0 | 1 = 0;
  #stepIndex = 0;
  #stepsDone = 0;
  #latent: Float32Array;
  #history: SamplerHistory = EMPTY_HISTORY;
  #taken: ServingError | undefined;
  #leaving = false;
  #prediction: Prediction | undefined;
  #preemptions = 0;
  #deviceMs = 0;

  constructor(options: DenoiseJobOptions) {
    this.id = options.id;
    this.model = options.model;
    this.sequenceLength = options.conditioning.sequenceLength;
    this.rowCount = options.conditioning.negative === undefined ? 1 : 2;
    this.extraInputs = describeExtras(options.conditioning);
    this.order = options.order ?? DEFAULT_ORDER;
    this.#options = options;
    const { from } = options;
    if (from !== undefined) {
      const { snapshot } = from;
      this.#generator = TorchGenerator.at({ ...snapshot.noise, spareNormal: null });
      this.#phase = snapshot.phase;
      this.#stepIndex = snapshot.stepIndex;
      this.#stepsDone = from.stepsDone;
      this.#latent = snapshot.latent;
      this.#history = { arrays: snapshot.history };
      return;
    }
    this.#generator = new TorchGenerator(options.seed);
    const { plan, shape, start } = options;
    const noise = () => this.#generator.randn(latentSize(shape));
    if (start === undefined) {
      this.#latent = noise().map((x) => x * plan.initNoiseSigma);
    } else if ("latent" in start) {
      noise(); // the first latent's
      for (let step = 0; step < start.firstStep && plan.drawsNoise; step++) noise();
      this.#latent = start.latent;
      this.#stepIndex = start.firstStep;
    } else {
      // In this order: diffusers draws the sample of the picture's latents first, from the same generator.
      const clean = sampleOf(start.latents, noise);
      this.#latent = plan.addNoise(clean, noise(), start.firstStep);
      this.#stepIndex = start.firstStep;
    }
  }

  get shape(): LatentShape {
    return this.#phase === 0 || this.#options.refine === undefined ? this.#options.shape : this.#options.refine.shape;
  }

  /** Steps made, both phases together. */
  get stepsDone(): number {
    return this.#stepsDone;
  }

  /** How often it gave way to more urgent work. */
  get preemptions(): number {
    return this.#preemptions;
  }

  /** Milliseconds of the whole device that its steps took here. */
  get deviceMs(): number {
    return this.#deviceMs;
  }

  get passesLeft(): readonly { readonly shape: LatentShape; readonly steps: number }[] {
    const { plan, refine } = this.#options;
    const here = { shape: this.shape, steps: plan.stepCount - this.#stepIndex };
    if (this.#phase === 1 || refine === undefined) return [here];
    return [here, { shape: refine.shape, steps: plan.stepCount - refine.firstStep }];
  }

  get done(): boolean {
    const lastPhase = this.#options.refine === undefined ? 0 : 1;
    return this.#phase === lastPhase && this.#stepIndex === this.#options.plan.stepCount;
  }

  get ended(): ServingError | undefined {
    if (this.#taken !== undefined) return this.#taken;
    if (this.#options.deadline.passed) {
      return new ServingError("DEADLINE_EXCEEDED", `no time left after ${this.#stepsDone} steps`);
    }
    return undefined;
  }

  /** Takes effect before the next step. */
  cancel(): void {
    this.#taken ??= new ServingError("CANCELLED", "the caller took the request back");
  }

  /** Takes the job from this worker before its next step; who asked for it gets a snapshot to go on from. */
  leave(reason: ServingError): void {
    this.#taken ??= reason;
    this.#leaving = this.#taken === reason;
  }

  /** True for a job that ended by `leave`. */
  get leaving(): boolean {
    return this.#leaving;
  }

  /** What the job is now. Its arrays are the job's own: nothing writes to them any more, and nobody else should. */
  get snapshot(): JobSnapshot {
    const { seed, draws, spareNormal } = this.#generator.position;
    invariant(spareNormal === null, "between latents the generator holds nothing back");
    const { arrays } = this.#history;
    return {
      phase: this.#phase,
      stepIndex: this.#stepIndex,
      latent: this.#latent,
      history: arrays,
      noise: { seed, draws },
    };
  }

  /** A snapshot after the last step; undefined where none of that step is wanted. */
  get checkpoint(): JobSnapshot | undefined {
    const { checkpointEverySteps: every = 0 } = this.#options;
    return every > 0 && this.#stepsDone % every === 0 && !this.done ? this.snapshot : undefined;
  }

  /** What the picture looks like after the last step; undefined where no preview of that step is wanted. */
  get preview(): Prediction | undefined {
    const { previewEverySteps: every = 0 } = this.#options;
    return every > 0 && this.#stepsDone % every === 0 ? this.#prediction : undefined;
  }

  preempted(): void {
    this.#preemptions += 1;
  }

  used(deviceMs: number): void {
    this.#deviceMs += deviceMs;
  }

  /** The finished latent, in VAE units. */
  get latent(): Float32Array {
    invariant(this.done, "only a finished job has a latent to decode");
    return this.#latent;
  }

  rows(): readonly UnetRow[] {
    const { plan, conditioning } = this.#options;
    const sample = plan.modelInput(this.#latent, this.#stepIndex);
    const timestep = plan.timesteps[this.#stepIndex]!;
    const { prompt, negative, pooled } = conditioning;
    const withPrompt = { sample, timestep, conditioning: prompt, ...this.#extras(pooled?.prompt) };
    if (negative === undefined) return [withPrompt];
    return [{ sample, timestep, conditioning: negative, ...this.#extras(pooled?.negative) }, withPrompt];
  }

  advance(predictions: readonly Float32Array[]): void {
    const { plan } = this.#options;
    const { latent, x0, history } = plan.step({
      stepIndex: this.#stepIndex,
      latent: this.#latent,
      modelOutput: this.#guided(predictions),
      history: this.#history,
      noise: () => this.#generator.randn(this.#latent.length),
    });
    if (!allFinite(latent)) {
      throw new ServingError("NUMERIC_FAILURE", `step ${this.#stepsDone + 1} gave NaN or an infinity in the latent`);
    }
    this.#latent = latent;
    this.#history = history;
    this.#prediction = { x0, shape: this.shape };
    this.#stepIndex += 1;
    this.#stepsDone += 1;
    if (this.#phase === 0 && this.#stepIndex === plan.stepCount && this.#options.refine)
      this.#enlarge(this.#options.refine);
  }

  /** A U-Net that takes a pooled embedding takes the picture's size as well. */
  #extras(pooled: Float32Array | undefined): Pick<UnetRow, "extras"> {
    if (pooled === undefined) return {};
    return { extras: { text_embeds: pooled, time_ids: timeIds(this.shape) } };
  }

  /** A new array: samplers keep predictions in their history, and the device's own holds only until its next run. */
  #guided(predictions: readonly Float32Array[]): Float32Array {
    const [first, second] = predictions;
    invariant(first !== undefined, "a job has at least one row");
    if (second === undefined) return first.slice();
    return guide(first, second, this.#options.guidanceScale);
  }

  /** From the clean native latent to a noisy one at the larger size. Noise goes on from the same generator. */
  #enlarge(refine: RefinePhase): void {
    const clean = upscaleLatent(this.#latent, this.#options.shape, refine.shape, refine.upscale);
    const noise = this.#generator.randn(clean.length);
    this.#latent = this.#options.plan.addNoise(clean, noise, refine.firstStep);
    this.#history = EMPTY_HISTORY;
    this.#stepIndex = refine.firstStep;
    this.#phase = 1;
  }
}

/** One latent of the distribution; without variances nothing is drawn. */
function sampleOf({ mean, std }: LatentDistribution, noise: () => Float32Array): Float32Array {
  if (std === undefined) return mean;
  const drawn = noise();
  return mean.map((value, i) => value + std[i]! * drawn[i]!);
}

/** Rows of one batch take inputs of the same names and lengths. */
function describeExtras({ pooled }: Conditioning): string {
  return pooled === undefined ? "" : `text_embeds ${pooled.prompt.length} time_ids`;
}

/** NaN and the infinities make a sum that is not finite; opposite infinities make NaN. */
function allFinite(values: Float32Array): boolean {
  let sum = 0;
  for (const value of values) sum += value;
  return Number.isFinite(sum);
}
