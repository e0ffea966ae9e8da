import type { Random } from "@atelier/core";
import { backOffMs } from "./back-off.ts";

/** What bulk work stands on. */
export type Pillar = "queue" | "store";

const BACK_OFF = { firstMs: 500, mostMs: 30_000 };

interface Trouble {
  readonly failures: number;
  readonly untilMs: number;
}

/** Nothing is pulled while the queue or the store failed lately: longer with each failure in a row. Time is an argument. */
export class Pauses {
  readonly #random: Random;
  readonly #troubles = new Map<Pillar, Trouble>();

  constructor(random: Random) {
    this.#random = random;
  }

  /** Failures of one time count as one: a whole worker's items may fail together. True where it is a new one. */
  failed(pillar: Pillar, nowMs: number): boolean {
    const { failures, untilMs } = this.#troubles.get(pillar) ?? { failures: 0, untilMs: -Infinity };
    if (nowMs < untilMs) return false;
    const waitMs = backOffMs(failures + 1, BACK_OFF, this.#random);
    this.#troubles.set(pillar, { failures: failures + 1, untilMs: nowMs + waitMs });
    return true;
  }

  /** It answered. True where it had not. */
  answered(pillar: Pillar): boolean {
    return this.#troubles.delete(pillar);
  }

  /** When all of them are worth a try; -Infinity where none failed. */
  get untilMs(): number {
    return Math.max(-Infinity, ...[...this.#troubles.values()].map(({ untilMs }) => untilMs));
  }

  /** Those that failed and have not answered since. */
  get failing(): readonly Pillar[] {
    return [...this.#troubles.keys()];
  }
}
