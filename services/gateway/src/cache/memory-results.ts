import type { Clock } from "@atelier/core";
import { LRUCache } from "lru-cache";
import { type KeptResult, type Subject, sizeOf } from "./kept-result.ts";

/** The results that this gateway has at hand; over the budget those that nobody asked for the longest go. */
export class MemoryResults {
  readonly #clock: Clock;
  /** 0 keeps nothing. */
  readonly bytesMax: number;
  readonly #entries: LRUCache<string, KeptResult> | undefined;

  constructor(clock: Clock, { bytesMax }: { readonly bytesMax: number }) {
    this.#clock = clock;
    this.bytesMax = bytesMax;
    this.#entries =
      bytesMax === 0 ? undefined : new LRUCache<string, KeptResult>({ maxSize: bytesMax, sizeCalculation: sizeOf });
  }

  get(key: string): KeptResult | undefined {
    const kept = this.#entries?.get(key);
    if (kept === undefined || kept.untilMs > this.#clock.nowMs()) return kept;
    this.#entries?.delete(key);
    return undefined;
  }

  /** What is larger than the whole budget is not kept. */
  set(key: string, kept: KeptResult): void {
    this.#entries?.set(key, kept);
  }

  /** Drops what `purged` holds of; how many that were. */
  sweep(purged: (subject: Subject, bornAt: number) => boolean): number {
    let swept = 0;
    for (const [key, kept] of this.#entries?.entries() ?? []) {
      if (!purged(kept.subject, kept.bornAt)) continue;
      this.#entries?.delete(key);
      swept += 1;
    }
    return swept;
  }

  get count(): number {
    return this.#entries?.size ?? 0;
  }

  get bytes(): number {
    return this.#entries?.calculatedSize ?? 0;
  }
}
