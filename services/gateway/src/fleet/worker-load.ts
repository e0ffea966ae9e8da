import { PRIORITY_CLASSES, type PriorityClass } from "../caller.ts";

/** Device milliseconds of work, by class. */
export type BacklogMs = Readonly<Record<PriorityClass, number>>;

/** What is left of each job, in device milliseconds, the least first, by class. */
export type JobsLeftMs = Readonly<Record<PriorityClass, readonly number[]>>;

/** What a worker says that it has to do. */
export interface BacklogReport {
  /** The higher of two is the newer; 0 from a worker that does not number its acceptances. */
  readonly sequence: bigint;
  readonly backlogMs: BacklogMs;
  /** The same job by job, in any order; of a worker that does not tell, each class is taken for one job. */
  readonly jobsLeftMs?: JobsLeftMs | undefined;
}

/** Work that is placed on a worker: so many jobs of one size. */
export interface JobsPlaced {
  readonly priority: PriorityClass;
  readonly jobs: number;
  readonly msEach: number;
}

/** Work that was placed, to be told apart from what the worker reports. */
export interface PlacedWork {
  /** The worker took it: every later report counts this work. */
  accepted(acceptance: { readonly sequence: bigint }): void;
  /** It is over there. More than once is once. */
  release(): void;
}

/**
 * How much a worker has to do, as one gateway knows it: what the worker last reported, less the time since, and what
 * this gateway has placed there and no report counts yet. Nothing is counted twice: states and acceptances are numbered
 * by the worker in one sequence, so each placement leaves with the first report that has it in.
 */
export class WorkerLoad {
  #report: Report | undefined;
  readonly #uncounted = new Set<Uncounted>();

  /** A newer report replaces the last; an older one that was late changes nothing. */
  reported(report: BacklogReport, nowMs: number): void {
    if (this.#report !== undefined && report.sequence < this.#report.sequence) return;
    this.#report = { sequence: report.sequence, jobsLeftMs: jobsOf(report), atMs: nowMs };
    for (const placed of this.#uncounted)
      if (placed.countedFrom !== undefined && placed.countedFrom <= report.sequence) this.#uncounted.delete(placed);
  }

  /** The worker is gone; the next one at its address counts from the beginning. */
  lost(): void {
    this.#report = undefined;
  }

  place(work: JobsPlaced): PlacedWork {
    const placed: Uncounted = { ...work, countedFrom: undefined };
    this.#uncounted.add(placed);
    return {
      accepted: ({ sequence }) => {
        const known = this.#report?.sequence ?? 0n;
        // One that does not number its acceptances counts the work in its next state.
        placed.countedFrom = sequence === 0n ? known + 1n : sequence;
        // A state that has it in may have come before the acceptance did.
        if (placed.countedFrom <= known) this.#uncounted.delete(placed);
      },
      release: () => void this.#uncounted.delete(placed),
    };
  }

  /** Requests placed here and in no report yet. */
  get uncounted(): number {
    return this.#uncounted.size;
  }

  /** Job by job, as of now. */
  jobsLeftMs(nowMs: number): JobsLeftMs {
    const left = this.#leftOfReport(nowMs);
    for (const { priority, jobs, msEach } of this.#uncounted)
      left[priority] = [...left[priority], ...Array.from({ length: jobs }, () => msEach)].sort((a, b) => a - b);
    return left;
  }

  /** The worker goes on between its reports: the most urgent class first, and in it whoever has the least left. */
  #leftOfReport(nowMs: number): Record<PriorityClass, readonly number[]> {
    const left: Record<PriorityClass, readonly number[]> = { interactive: [], standard: [], bulk: [] };
    if (this.#report === undefined) return left;
    let doneMs = Math.max(0, nowMs - this.#report.atMs);
    for (const priority of PRIORITY_CLASSES) {
      const reported = this.#report.jobsLeftMs[priority];
      let gone = 0;
      while (gone < reported.length && reported[gone]! <= doneMs) doneMs -= reported[gone++]!;
      left[priority] = reported.slice(gone);
      const [first, ...others] = left[priority];
      if (first === undefined || doneMs === 0) continue;
      left[priority] = [first - doneMs, ...others];
      doneMs = 0;
    }
    return left;
  }
}

/** What it comes to by class. */
export function backlogOf(jobs: JobsLeftMs): BacklogMs {
  const sum = (left: readonly number[]) => left.reduce((total, ms) => total + ms, 0);
  return { interactive: sum(jobs.interactive), standard: sum(jobs.standard), bulk: sum(jobs.bulk) };
}

function jobsOf({ backlogMs, jobsLeftMs }: BacklogReport): JobsLeftMs {
  const sorted = (priority: PriorityClass) =>
    (jobsLeftMs?.[priority] ?? [backlogMs[priority]]).filter((ms) => ms > 0).sort((a, b) => a - b);
  return { interactive: sorted("interactive"), standard: sorted("standard"), bulk: sorted("bulk") };
}

interface Report {
  readonly sequence: bigint;
  readonly atMs: number;
  /** The least first. */
  readonly jobsLeftMs: JobsLeftMs;
}

interface Uncounted extends JobsPlaced {
  /** The number of the first report that counts it; undefined until the worker has accepted it. */
  countedFrom: bigint | undefined;
}
