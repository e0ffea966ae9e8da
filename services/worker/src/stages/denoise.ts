import { invariant, ServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";

/** One sample of a U-Net batch. */
export interface UnetRow {
  /** The latent as the U-Net wants it (scaled by the sampler), [channels, height, width], flat. */
  readonly sample: Float32Array;
  /** Training timestep, 0..1000; Euler's are fractional. */
  readonly timestep: number;
  /** Text embedding, [sequenceLength, width], flat. */
  readonly conditioning: Float32Array;
  /** What else the graph takes for each row, by the input's name, one dimension each: SDXL's text_embeds and time_ids. */
  readonly extras?: Readonly<Record<string, Float32Array>>;
}

/** Rows that one U-Net run can take together: same network, same shapes. */
export interface UnetBatch {
  readonly model: string;
  readonly shape: LatentShape;
  readonly sequenceLength: number;
  readonly rows: readonly UnetRow[];
}

/** What the denoise stage needs of a device. */
export interface Unet {
  /**
   * The U-Net's prediction for each row, in order, each [channels, height, width], flat. The arrays belong to the
   * device and hold until the next call. Not re-entrant.
   */
  predictNoise(batch: UnetBatch): Promise<readonly Float32Array[]>;
}

/** What the stage needs of a job: one image on its way through a request's steps. */
export interface StepJob {
  readonly id: string;
  readonly model: string;
  /** Shape of the latent now; a job of two phases changes it on the way. */
  readonly shape: LatentShape;
  readonly sequenceLength: number;
  /** Why the job should not go on: the caller went away, or its time is up. */
  readonly ended: ServingError | undefined;
  readonly done: boolean;
  /** The rows of the next step: two with guidance, one without. */
  rows(): readonly UnetRow[];
  /** @throws ServingError NUMERIC_FAILURE when a prediction holds NaN or an infinity. */
  advance(predictions: readonly Float32Array[]): void;
}

export interface DenoiseLimits {
  /** Jobs that may wait for a place in the step batch. */
  readonly waitingMax: number;
  /** Jobs in one U-Net run. */
  readonly stepBatchMax: number;
  /** Finished latents that image decode has not taken yet; at this many no further job starts. */
  readonly undecodedMax: number;
}

/** What one turn did. */
export interface Turn<Job extends StepJob> {
  /** The jobs that made a step, those that failed in it left out. */
  readonly stepped: readonly Job[];
  readonly finished: readonly Job[];
  readonly failed: readonly { readonly job: Job; readonly error: ServingError }[];
  /** What the U-Net ran on; undefined where nothing ran. */
  readonly batch: UnetBatch | undefined;
}

/**
 * Denoises whichever jobs are in flight, one sampling step at a time. Jobs join and leave between steps, so among
 * images of one size a short job never waits for a long one to finish.
 *
 * One loop owns it: `step()` is not re-entrant; `enqueue()` may be called while a step runs.
 */
export class DenoiseStage<Job extends StepJob> {
  readonly #unet: Unet;
  readonly #limits: DenoiseLimits;
  #waiting: Job[] = [];
  #running: Job[] = [];
  #undecoded = 0;

  constructor(unet: Unet, limits: DenoiseLimits) {
    this.#unet = unet;
    this.#limits = limits;
  }

  /** @throws ServingError OVERLOADED when the waiting room is full. */
  enqueue(job: Job): void {
    if (this.#waiting.length >= this.#limits.waitingMax) {
      throw new ServingError("OVERLOADED", `${this.#limits.waitingMax} jobs already wait to denoise`);
    }
    this.#waiting.push(job);
  }

  /** Image decode has taken `count` finished latents. */
  taken(count: number): void {
    invariant(count <= this.#undecoded, "only finished latents are taken");
    this.#undecoded -= count;
  }

  /** Jobs that wait for a place in the step batch. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** True while a call of `step()` would do something. */
  get busy(): boolean {
    if (this.#running.length > 0) return true;
    return this.#waiting.some((job) => job.ended) || (this.#waiting.length > 0 && this.#decodeHasRoom);
  }

  /** One turn: drop, admit, step, retire. */
  async step(): Promise<Turn<Job>> {
    const dropped = this.#dropEnded();
    this.#admitWaiting();
    const running = this.#running;
    if (running.length === 0) return { stepped: [], finished: [], failed: dropped, batch: undefined };

    const rowsByJob = running.map((job) => job.rows());
    const batch = batchOf(running[0]!, rowsByJob.flat());
    const failed = [...dropped, ...(await this.#advance(running, rowsByJob, batch))];
    const lost = new Set(failed.map(({ job }) => job));
    const stepped = running.filter((job) => !lost.has(job));
    const finished = stepped.filter((job) => job.done);
    this.#undecoded += finished.length;
    this.#keep(
      stepped.filter((job) => !job.done),
      batch,
    );
    return { stepped, finished, failed, batch };
  }

  #dropEnded() {
    const failed = [...this.#running, ...this.#waiting].flatMap((job) =>
      job.ended === undefined ? [] : [{ job, error: job.ended }],
    );
    this.#running = this.#running.filter((job) => job.ended === undefined);
    this.#waiting = this.#waiting.filter((job) => job.ended === undefined);
    return failed;
  }

  /**
   * Oldest first, and stops at the first job that does not fit. Reaching past it would fill the batch better and
   * starve large images.
   */
  #admitWaiting(): void {
    let job = this.#waiting[0];
    while (job !== undefined && this.#fits(job)) {
      this.#running.push(job);
      this.#waiting.shift();
      job = this.#waiting[0];
    }
  }

  #fits(job: Job): boolean {
    if (!this.#decodeHasRoom || this.#running.length >= this.#limits.stepBatchMax) return false;
    return this.#running.every((running) => fitTogether(running, job));
  }

  get #decodeHasRoom(): boolean {
    return this.#undecoded < this.#limits.undecodedMax;
  }

  /** Runs the U-Net once and moves every job on; returns the jobs that could not be. */
  async #advance(jobs: readonly Job[], rowsByJob: readonly (readonly UnetRow[])[], batch: UnetBatch) {
    let predictions: readonly Float32Array[];
    try {
      predictions = await this.#unet.predictNoise(batch);
    } catch (error) {
      // The device refused this batch; the next one may be of other jobs.
      if (!(error instanceof ServingError)) throw error;
      return jobs.map((job) => ({ job, error }));
    }
    invariant(predictions.length === batch.rows.length, "one prediction for each row");

    let row = 0;
    return jobs.flatMap((job, i) => {
      const from = row;
      row += rowsByJob[i]!.length;
      try {
        job.advance(predictions.slice(from, row));
        return [];
      } catch (error) {
        if (!(error instanceof ServingError)) throw error;
        return [{ job, error }];
      }
    });
  }

  /**
   * A job that went on to another shape leaves the batch and waits at the front of the queue. Nobody passes it
   * there, so it starts again as soon as those that it left have finished.
   */
  #keep(unfinished: readonly Job[], batch: UnetBatch): void {
    this.#running = unfinished.filter((job) => sameShape(job.shape, batch.shape));
    const moved = unfinished.filter((job) => !sameShape(job.shape, batch.shape));
    this.#waiting.unshift(...moved);
  }
}

function batchOf({ model, shape, sequenceLength }: StepJob, rows: readonly UnetRow[]): UnetBatch {
  return { model, shape, sequenceLength, rows };
}

function fitTogether(a: StepJob, b: StepJob): boolean {
  return a.model === b.model && a.sequenceLength === b.sequenceLength && sameShape(a.shape, b.shape);
}

function sameShape(a: LatentShape, b: LatentShape): boolean {
  return a.channels === b.channels && a.height === b.height && a.width === b.width;
}
