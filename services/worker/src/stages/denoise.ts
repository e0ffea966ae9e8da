import { type Clock, invariant, ServingError, toServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { UnetLanes } from "../device/device.ts";
import type { ScheduledJob, StepBatch, StepScheduler } from "./order/step-scheduler.ts";

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

/** A U-Net as it is run; `UnetLanes` has the lanes that the stage runs it on. */
export interface Unet {
  /**
   * The U-Net's prediction for each row, in order, each [channels, height, width], flat. The arrays belong to the
   * device and hold until the next call. Not re-entrant.
   */
  predictNoise(batch: UnetBatch): Promise<readonly Float32Array[]>;
}

/** What the stage needs of a job: one image on its way through a request's steps. */
export interface StepJob extends ScheduledJob {
  readonly id: string;
  /** Why the job should not go on: the caller went away, or its time is up. */
  readonly ended: ServingError | undefined;
  readonly done: boolean;
  /** The rows of the next step, `rowCount` of them. */
  rows(): readonly UnetRow[];
  /** @throws ServingError NUMERIC_FAILURE when a prediction holds NaN or an infinity. */
  advance(predictions: readonly Float32Array[]): void;
  /** It had started, and gives way to more urgent work. */
  preempted(): void;
  /** Its part of a run took so many milliseconds of the whole device. */
  used(deviceMs: number): void;
}

export interface DenoiseLimits {
  /** Jobs in the stage. */
  readonly jobsMax: number;
  /** Finished latents that image decode has not taken yet; at this many no job makes its last step. */
  readonly undecodedMax: number;
}

export interface DenoiseParts<Job extends StepJob> {
  /** The lanes of a model; it is loaded for as long as jobs of it are here. */
  readonly lanesOf: (model: string) => UnetLanes;
  readonly scheduler: StepScheduler<Job>;
  readonly clock: Clock;
  readonly limits: DenoiseLimits;
  /** Lanes that were to be opened and could not be; those that are there go on. */
  readonly onLanesFailed: (model: string, error: ServingError) => void;
}

/** One run of a lane, and what became of its jobs. */
export interface StepRun<Job extends StepJob> {
  readonly batch: StepBatch<Job>;
  readonly endedAtMs: number;
  /** The jobs that made a step, those that failed in it left out. */
  readonly stepped: readonly Job[];
  /** True where the device had no room for the batch: nobody moved, and smaller ones are tried. */
  readonly refused: boolean;
}

/** What one turn did. */
export interface Turn<Job extends StepJob> {
  /** Runs that ended. */
  readonly runs: readonly StepRun<Job>[];
  readonly finished: readonly Job[];
  readonly failed: readonly { readonly job: Job; readonly error: ServingError }[];
  /** How many jobs were made to give way. */
  readonly preempted: number;
}

type Failures<Job> = { readonly job: Job; readonly error: ServingError }[];
type Landed<Job> = { readonly batch: StepBatch<Job>; readonly endedAtMs: number } & (
  | { readonly predictions: readonly Float32Array[] }
  | { readonly error: unknown }
);

/**
 * Denoises whichever jobs are in flight, one sampling step at a time, on as many lanes as the device has. Jobs join and
 * leave between steps: who goes next, with whom and where is the scheduler's to say.
 *
 * One loop owns it: `step()` is not re-entrant; everything else may be called while a step waits for its lanes.
 */
export class DenoiseStage<Job extends StepJob> {
  readonly #parts: DenoiseParts<Job>;
  readonly #running = new Set<Promise<void>>();
  readonly #landed: Landed<Job>[] = [];
  readonly #opening = new WeakSet<UnetLanes>();
  #undecoded = 0;
  #preempted = 0;
  #stir = () => {};

  constructor(parts: DenoiseParts<Job>) {
    this.#parts = parts;
  }

  /** @throws ServingError OVERLOADED when the stage is full. */
  enqueue(job: Job): void {
    const { scheduler, clock, limits } = this.#parts;
    if (scheduler.size >= limits.jobsMax) {
      throw new ServingError("OVERLOADED", `${limits.jobsMax} jobs are here to denoise, which is the most`);
    }
    scheduler.add(job, clock.nowMs());
    this.#stir();
  }

  /** A job's `ended` may have changed. */
  look(): void {
    this.#stir();
  }

  /** Image decode has taken `count` finished latents. */
  taken(count: number): void {
    invariant(count <= this.#undecoded, "only finished latents are taken");
    this.#undecoded -= count;
    this.#stir();
  }

  /** Jobs that make no step right now. */
  get waiting(): number {
    return [...this.#parts.scheduler.idle()].length;
  }

  /** True while a call of `step()` would do something, or wait for a lane that does. */
  get busy(): boolean {
    if (this.#running.size > 0 || this.#landed.length > 0) return true;
    for (const job of this.#parts.scheduler.idle()) if (job.ended || this.#mayStep(job)) return true;
    return false;
  }

  /**
   * One turn: drops what has ended, starts what can start, waits for the first lane to finish or for news, advances the
   * jobs of the lanes that finished, and starts what can start now, so that no lane waits for what the caller does with
   * the result.
   */
  async step(): Promise<Turn<Job>> {
    const dropped = this.#dropEnded();
    this.#startAll();
    if (dropped.length === 0 && this.#landed.length === 0 && this.#running.size > 0) await this.#news();
    const { runs, finished, failed } = this.#settleLanded();
    dropped.push(...this.#dropEnded());
    this.#startAll();
    const preempted = this.#preempted;
    this.#preempted = 0;
    return { runs, finished, failed: [...dropped, ...failed], preempted };
  }

  /** Resolves when no lane runs any more. Nothing is started by waiting. */
  async quiet(): Promise<void> {
    await Promise.all(this.#running);
  }

  /** Resolves when a lane finishes, a job arrives, or something else may have changed. */
  #news(): Promise<void> {
    return new Promise((resolve) => {
      this.#stir = () => {
        this.#stir = () => {};
        resolve();
      };
    });
  }

  #mayStep(job: Job): boolean {
    return this.#undecoded < this.#parts.limits.undecodedMax || stepsLeft(job) > 1;
  }

  /** Jobs in a running batch are dropped when it has ended. */
  #dropEnded(): Failures<Job> {
    const { scheduler } = this.#parts;
    const ended = [...scheduler.idle()].flatMap((job) => (job.ended === undefined ? [] : [{ job, error: job.ended }]));
    for (const { job } of ended) scheduler.remove(job);
    return ended;
  }

  #startAll(): void {
    const { scheduler, clock, limits } = this.#parts;
    const finishesMax = limits.undecodedMax - this.#undecoded;
    for (;;) {
      const batch = scheduler.next(clock.nowMs(), finishesMax);
      if (batch === undefined) break;
      this.#start(batch);
    }
    for (const job of scheduler.preempted(finishesMax)) {
      job.preempted();
      this.#preempted += 1;
    }
    for (const model of scheduler.narrowWanted) this.#openNarrow(model);
  }

  #start(batch: StepBatch<Job>): void {
    const { lanesOf, clock } = this.#parts;
    const { model, shape, sequenceLength, slot } = batch;
    const lanes = lanesOf(model);
    const lane = slot === "wide" ? lanes.wide : lanes.narrow[slot]!;
    const rows = batch.jobs.flatMap((job) => job.rows());
    invariant(rows.length === batch.rowCount, "jobs have as many rows as they say");
    const running = lane
      .predictNoise({ model, shape, sequenceLength, rows })
      .then(
        (predictions) => this.#landed.push({ batch, endedAtMs: clock.nowMs(), predictions }),
        (error: unknown) => this.#landed.push({ batch, endedAtMs: clock.nowMs(), error }),
      )
      .then(() => {
        this.#running.delete(running);
        this.#stir();
      });
    this.#running.add(running);
  }

  #settleLanded() {
    const { scheduler } = this.#parts;
    const runs: StepRun<Job>[] = [];
    const finished: Job[] = [];
    const failed: Failures<Job> = [];
    for (const landed of this.#landed.splice(0)) {
      const { batch, endedAtMs } = landed;
      // A lone job that does not fit will not fit later; of several, smaller batches may.
      const refused = "error" in landed && outOfMemory(landed.error) && batch.jobs.length > 1;
      const failures = refused ? [] : this.#advance(landed);
      const lost = new Set(failures.map(({ job }) => job));
      scheduler.ended(batch, endedAtMs, { fitted: !refused });
      for (const { job, deviceMs } of sharesOf(batch, endedAtMs - batch.startedAtMs)) job.used(deviceMs);
      const stepped = refused ? [] : batch.jobs.filter((job) => !lost.has(job));
      runs.push({ batch, endedAtMs, stepped, refused });
      failed.push(...failures);
      finished.push(...stepped.filter((job) => job.done));
    }
    for (const job of [...finished, ...failed.map(({ job }) => job)]) scheduler.remove(job);
    this.#undecoded += finished.length;
    return { runs, finished, failed };
  }

  /** Moves every job of a run on; returns those that could not be. Throws what is a bug. */
  #advance(landed: Landed<Job>): Failures<Job> {
    const { jobs, rowCount } = landed.batch;
    if ("error" in landed) {
      // The device refused this batch; the next one may be of other jobs.
      const { error } = landed;
      if (!(error instanceof ServingError)) throw error;
      return jobs.map((job) => ({ job, error }));
    }
    invariant(landed.predictions.length === rowCount, "one prediction for each row");
    let row = 0;
    return jobs.flatMap((job) => {
      const from = row;
      row += job.rowCount;
      if (job.ended !== undefined) return [{ job, error: job.ended }];
      try {
        job.advance(landed.predictions.slice(from, row));
        return [];
      } catch (error) {
        if (!(error instanceof ServingError)) throw error;
        return [{ job, error }];
      }
    });
  }

  #openNarrow(model: string): void {
    const lanes = this.#parts.lanesOf(model);
    if (this.#opening.has(lanes)) return;
    this.#opening.add(lanes);
    lanes.openNarrow().then(
      () => this.#stir(),
      (error: unknown) => this.#parts.onLanesFailed(model, toServingError(error)),
    );
  }
}

/** What each job of a run took of the whole device: the share of its rows, over the lanes that run beside one another. */
function sharesOf<Job extends StepJob>({ jobs, rowCount, lanes }: StepBatch<Job>, tookMs: number) {
  const share = (job: Job) => (jobs.length === 1 ? 1 : job.rowCount / rowCount);
  return jobs.map((job) => ({ job, deviceMs: (tookMs * share(job)) / lanes }));
}

function outOfMemory(error: unknown): boolean {
  return error instanceof ServingError && error.code === "OUT_OF_MEMORY";
}

function stepsLeft({ passesLeft }: ScheduledJob): number {
  return passesLeft.reduce((sum, { steps }) => sum + steps, 0);
}
