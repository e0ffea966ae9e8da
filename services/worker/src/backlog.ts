import { invariant } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { PriorityClass } from "./stages/order/service-order.ts";
import type { StepTimes } from "./step-times.ts";

/** One pass of one job: `steps` steps of `rows` rows each at `shape`. */
export interface PassWork {
  readonly shape: LatentShape;
  readonly steps: number;
}

export interface JobWork {
  readonly model: string;
  readonly priorityClass: PriorityClass;
  readonly rows: number;
  readonly passes: readonly PassWork[];
}

/** Denoising work accepted and not done, in device milliseconds as the learned step times predict. */
export class Backlog {
  readonly #times: StepTimes;
  readonly #jobs = new Map<string, { work: JobWork; stepsDone: number }>();

  constructor(times: StepTimes) {
    this.#times = times;
  }

  add(jobId: string, work: JobWork): void {
    invariant(!this.#jobs.has(jobId), `job ${jobId} is counted once`);
    this.#jobs.set(jobId, { work, stepsDone: 0 });
  }

  progress(jobId: string, stepsDone: number): void {
    const job = this.#jobs.get(jobId);
    if (job !== undefined) job.stepsDone = stepsDone;
  }

  remove(jobId: string): void {
    this.#jobs.delete(jobId);
  }

  get totalMs(): number {
    const { interactive, standard, bulk } = this.byClassMs;
    return interactive + standard + bulk;
  }

  get byClassMs(): Readonly<Record<PriorityClass, number>> {
    const left = { interactive: 0, standard: 0, bulk: 0 };
    for (const { work, stepsDone } of this.#jobs.values()) left[work.priorityClass] += this.#leftMs(work, stepsDone);
    return left;
  }

  /** The same job by job, those that are denoised left out. */
  get jobsLeftMs(): Readonly<Record<PriorityClass, readonly number[]>> {
    const left: Record<PriorityClass, number[]> = { interactive: [], standard: [], bulk: [] };
    for (const { work, stepsDone } of this.#jobs.values()) {
      const ms = this.#leftMs(work, stepsDone);
      if (ms > 0) left[work.priorityClass].push(ms);
    }
    return left;
  }

  #leftMs({ model, rows, passes }: JobWork, stepsDone: number): number {
    let done = stepsDone;
    let left = 0;
    for (const { shape, steps } of passes) {
      const doneHere = Math.min(done, steps);
      done -= doneHere;
      left += (steps - doneHere) * rows * this.#times.msPerRow(model, shape);
    }
    return left;
  }
}
