import type { Clock } from "@atelier/core";
import { ServingError } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import type { Gateway, UsageTotal } from "./ports.ts";

/** Tenants whose month is used up make this many more pictures at most than they may: what is handed out meanwhile. */
const EVERY_MS = 2_000;
const BATCH_MAX = 200;

export interface BookingOptions {
  readonly gateway: Pick<Gateway, "book">;
  /** What all jobs have used so far. */
  readonly usage: () => Iterable<UsageTotal>;
  /** Told of every tenant that was booked: what its month is used up of, or null. */
  readonly onStanding: (tenant: string, exhausted: string | null) => void;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Tells the gateway what jobs have used, again and again, in total: what it knows already changes nothing there. Tenants that
 * are held are asked about until they may go on.
 */
export class Booking {
  readonly #options: BookingOptions;
  /** The last total of each that was booked. */
  readonly #booked = new Map<string, number>();
  readonly #held = new Set<string>();
  #cancel: (() => void) | undefined;
  #running: Promise<void> = Promise.resolve();
  #failing = false;
  #closed = false;

  constructor(options: BookingOptions) {
    this.#options = options;
  }

  start(): void {
    this.#cancel = this.#options.clock.after(EVERY_MS, () => {
      this.#running = this.book().then(() => {
        if (!this.#closed) this.start();
      });
    });
  }

  /** Books what is left, if the gateway can be reached. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#cancel?.();
    await this.#running;
    await this.book();
  }

  /** Never rejects: what is not booked now is booked later. */
  async book(): Promise<void> {
    const changed: UsageTotal[] = [];
    const left = new Map(this.#booked);
    const unasked = new Set(this.#held);
    for (const total of this.#options.usage()) {
      unasked.delete(total.tenant);
      const key = keyOf(total);
      left.delete(key);
      if (this.#booked.get(key) !== total.images || this.#held.has(total.tenant)) changed.push(total);
    }
    for (const key of left.keys()) this.#booked.delete(key); // of jobs that were deleted
    // All their jobs are gone, and nobody would be asked about them any more: their next picture tells.
    for (const tenant of unasked) {
      this.#held.delete(tenant);
      this.#options.onStanding(tenant, null);
    }
    for (let from = 0; from < changed.length; from += BATCH_MAX) {
      if (!(await this.#bookBatch(changed.slice(from, from + BATCH_MAX)))) return;
    }
  }

  async #bookBatch(totals: readonly UsageTotal[]): Promise<boolean> {
    const { gateway, log, onStanding } = this.#options;
    try {
      for (const { tenant, exhausted } of await gateway.book(totals)) {
        if (exhausted === null) this.#held.delete(tenant);
        else this.#held.add(tenant);
        onStanding(tenant, exhausted);
      }
      for (const total of totals) this.#booked.set(keyOf(total), total.images);
      if (this.#failing) log.info("what jobs use is booked again");
      this.#failing = false;
      return true;
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      if (!this.#failing) log.warn({ reason: error.detail }, "what jobs use could not be booked; trying on");
      this.#failing = true;
      return false;
    }
  }
}

function keyOf({ jobId, model }: UsageTotal): string {
  return `${jobId} ${model}`;
}
