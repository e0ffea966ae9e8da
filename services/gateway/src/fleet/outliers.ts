import { type Clock, type ErrorCode, ServingError } from "@atelier/core";

/** Failures that say something of the worker. The others are the request's own, the caller's, or a refusal. */
const WORKERS_OWN: ReadonlySet<ErrorCode> = new Set(["WORKER_LOST", "OUT_OF_MEMORY", "DEVICE_UNAVAILABLE", "INTERNAL"]);

export const OUTLIER_LIMITS = {
  /** Of a worker, in a row. As in Envoy's outlier detection: fewer happen by chance. */
  failuresMax: 5,
  /** How long it is left out the first time: about a restart. Doubled each time, since it came back too soon. */
  firstMs: 10_000,
  lastMs: 300_000,
  /** Where more than this fail, it is not the workers: leaving them all out would only make it worse. */
  shareMax: 0.5,
} as const;

export interface OutliersOptions {
  readonly clock: Clock;
  /** How many workers there are. */
  readonly fleetSize: () => number;
  readonly onEjected: (address: string, forMs: number, failures: number) => void;
  readonly onReturned: (address: string) => void;
}

/**
 * Leaves out workers that fail again and again though they say that they are ready. One that comes back is on probation:
 * its next failure leaves it out again, for longer; its next success clears it.
 *
 * Source: Envoy, "Outlier detection" (consecutive failures, ejection time times count, maximum ejection percent).
 */
export class Outliers {
  readonly #options: OutliersOptions;
  readonly #records = new Map<string, Record>();

  constructor(options: OutliersOptions) {
    this.#options = options;
  }

  /** How a request ended there; undefined: well. */
  ended(address: string, failure: Error | undefined): void {
    if (failure === undefined) {
      const record = this.#records.get(address);
      if (record !== undefined && record.returnsAtMs === undefined) this.#records.delete(address);
      return;
    }
    if (!(failure instanceof ServingError) || !WORKERS_OWN.has(failure.code)) return;
    const record = this.#records.get(address) ?? {
      failures: 0,
      ejections: 0,
      returnsAtMs: undefined,
      cancel: () => {},
    };
    this.#records.set(address, record);
    if (record.returnsAtMs !== undefined) return; // it began before the worker was left out
    record.failures += 1;
    const limit = record.ejections > 0 ? 1 : OUTLIER_LIMITS.failuresMax;
    if (record.failures >= limit && this.#mayEject()) this.#eject(address, record);
  }

  /** When the worker is taken in again, in milliseconds since the epoch; undefined where it is not left out. */
  returnsAtMs(address: string): number | undefined {
    return this.#records.get(address)?.returnsAtMs;
  }

  /** The worker has left the fleet. */
  forget(address: string): void {
    this.#records.get(address)?.cancel();
    this.#records.delete(address);
  }

  #mayEject(): boolean {
    const out = [...this.#records.values()].filter(({ returnsAtMs }) => returnsAtMs !== undefined).length;
    return out + 1 <= OUTLIER_LIMITS.shareMax * this.#options.fleetSize();
  }

  #eject(address: string, record: Record): void {
    const { clock, onEjected, onReturned } = this.#options;
    const { firstMs, lastMs } = OUTLIER_LIMITS;
    const forMs = Math.min(lastMs, firstMs * 2 ** record.ejections);
    onEjected(address, forMs, record.failures);
    record.ejections += 1;
    record.failures = 0;
    record.returnsAtMs = clock.nowMs() + forMs;
    record.cancel = clock.after(forMs, () => {
      record.returnsAtMs = undefined;
      onReturned(address);
    });
  }
}

interface Record {
  /** In a row. */
  failures: number;
  ejections: number;
  returnsAtMs: number | undefined;
  cancel: () => void;
}
