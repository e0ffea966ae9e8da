import type { PriorityClass } from "../caller.ts";

/** Device milliseconds of work, by class. */
export type BacklogMs = Readonly<Record<PriorityClass, number>>;

/** What a worker says that it has to do. */
export interface BacklogReport {
  /** The higher of two is the newer; 0 from a worker that does not number them. */
  readonly sequence: bigint;
  readonly backlogMs: BacklogMs;
}

/** Work that was placed on a worker, to be told apart from what the worker reports. */
export interface PlacedWork {
  /** The worker took it: its report, and every later one, counts this work. */
  accepted(report: BacklogReport): void;
  /** It is over there. More than once is once. */
  release(): void;
}

/**
 * How much a worker has to do, as one gateway knows it: what the worker last reported, less the time since, and what
 * this gateway has placed there and no report counts yet. Nothing is counted twice: reports and acceptances are numbered
 * by the worker in one sequence, so each placement leaves with the first report that has it in.
 */
export class WorkerLoad {
  #report: (BacklogReport & { readonly atMs: number }) | undefined;
  readonly #uncounted = new Set<Uncounted>();

  /** A newer report replaces the last; an older one that was late changes nothing. */
  reported(report: BacklogReport, nowMs: number): void {
    if (this.#report !== undefined && report.sequence < this.#report.sequence) return;
    this.#report = { ...report, atMs: nowMs };
    for (const placed of this.#uncounted)
      if (placed.countedFrom !== undefined && placed.countedFrom <= report.sequence) this.#uncounted.delete(placed);
  }

  /** The worker is gone; the next one at its address counts from the beginning. */
  lost(): void {
    this.#report = undefined;
  }

  place(work: { readonly priority: PriorityClass; readonly ms: number }, clock: { nowMs(): number }): PlacedWork {
    const placed: Uncounted = { ...work, countedFrom: undefined };
    this.#uncounted.add(placed);
    return {
      accepted: (report) => {
        if (!this.#uncounted.has(placed)) return;
        // One that does not number its acceptances counts the work in its next state.
        placed.countedFrom = report.sequence === 0n ? (this.#report?.sequence ?? 0n) + 1n : report.sequence;
        if (report.sequence !== 0n) this.reported(report, clock.nowMs());
        // A state that has it in may have come before the acceptance did.
        if (this.#report !== undefined && placed.countedFrom <= this.#report.sequence) this.#uncounted.delete(placed);
      },
      release: () => void this.#uncounted.delete(placed),
    };
  }

  /** Placed here and in no report yet. */
  get uncounted(): number {
    return this.#uncounted.size;
  }

  backlogMs(nowMs: number): BacklogMs {
    const left = this.#leftOfReport(nowMs);
    for (const { priority, ms } of this.#uncounted) left[priority] += ms;
    return left;
  }

  /** The worker goes on between its reports, the most urgent class first. */
  #leftOfReport(nowMs: number): Record<PriorityClass, number> {
    const left = { interactive: 0, standard: 0, bulk: 0 };
    if (this.#report === undefined) return left;
    let doneMs = Math.max(0, nowMs - this.#report.atMs);
    for (const priority of PRIORITY_ORDER) {
      const reportedMs = this.#report.backlogMs[priority];
      left[priority] = Math.max(0, reportedMs - doneMs);
      doneMs = Math.max(0, doneMs - reportedMs);
    }
    return left;
  }
}

const PRIORITY_ORDER = ["interactive", "standard", "bulk"] as const;

interface Uncounted {
  readonly priority: PriorityClass;
  readonly ms: number;
  /** The number of the first report that counts it; undefined until the worker has accepted it. */
  countedFrom: bigint | undefined;
}
