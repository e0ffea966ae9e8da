import type { Clock } from "@atelier/core";
import type { JobView } from "../ports.ts";
import { CallSlots } from "./call-slots.ts";

export interface ProgressParts {
  readonly clock: Clock;
  /** Makes one call; resolves when it is over, whatever came of it. */
  readonly call: (job: JobView) => Promise<void>;
  /** A call was left out for a newer one, or because too many run. */
  readonly onDropped: () => void;
}

interface Watched {
  newest: JobView | undefined;
  calling: boolean;
  /** Since when the next may begin. */
  freeAtMs: number;
  cancelTimer: () => void;
}

/** At most one progress call in this time for a job. */
const EVERY_MS = 500;
const CALLS_MAX = 16;
const CALLS_PER_HOST_MAX = 4;

/** Calls that tell how far a job is: the newest state only, one at a time, and never a second time. */
export class ProgressCalls {
  readonly #parts: ProgressParts;
  readonly #slots = new CallSlots({ max: CALLS_MAX, perHostMax: CALLS_PER_HOST_MAX });
  readonly #jobs = new Map<string, Watched>();

  constructor(parts: ProgressParts) {
    this.#parts = parts;
  }

  offer(job: JobView): void {
    const { id } = job.record;
    const watched = this.#jobs.get(id) ?? { newest: undefined, calling: false, freeAtMs: 0, cancelTimer: () => {} };
    this.#jobs.set(id, watched);
    if (watched.newest !== undefined) this.#parts.onDropped();
    const waits = watched.newest !== undefined || watched.calling;
    watched.newest = job;
    if (!waits) this.#soon(id, watched);
  }

  /** It has ended: what its progress was is told by its end. */
  forget(jobId: string): void {
    const watched = this.#jobs.get(jobId);
    watched?.cancelTimer();
    if (watched !== undefined) watched.newest = undefined;
    this.#jobs.delete(jobId);
  }

  stop(): void {
    for (const id of [...this.#jobs.keys()]) this.forget(id);
  }

  #soon(id: string, watched: Watched): void {
    const waitMs = Math.max(0, watched.freeAtMs - this.#parts.clock.nowMs());
    watched.cancelTimer = this.#parts.clock.after(waitMs, () => void this.#call(id, watched));
  }

  async #call(id: string, watched: Watched): Promise<void> {
    const job = watched.newest;
    watched.newest = undefined;
    if (job?.record.webhook == null) return;
    watched.freeAtMs = this.#parts.clock.nowMs() + EVERY_MS;
    const { host } = new URL(job.record.webhook.url);
    if (!this.#slots.take(host)) return this.#parts.onDropped();
    watched.calling = true;
    try {
      await this.#parts.call(job);
    } finally {
      this.#slots.free(host);
      watched.calling = false;
      if (watched.newest !== undefined) this.#soon(id, watched);
    }
  }
}
