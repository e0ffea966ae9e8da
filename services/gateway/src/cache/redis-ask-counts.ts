import type { Clock } from "@atelier/core";
import type { RedisLink } from "../shared/redis-link.ts";
import { type AskCounts, sketchCells } from "./ask-counts.ts";

/**
 * Counts of all gateways together: the same sketch as one string of Redis for each half window, 1 MiB at most, which
 * goes away by itself. Rejects with StoreUnavailable.
 */
export class RedisAskCounts implements AskCounts {
  readonly #link: RedisLink;
  readonly #clock: Clock;
  readonly #windowMs: number;

  constructor(link: RedisLink, { clock, windowMs }: { clock: Clock; windowMs: number }) {
    this.#link = link;
    this.#clock = clock;
    this.#windowMs = windowMs;
  }

  async add(digest: string): Promise<number> {
    const half = Math.floor(this.#clock.nowMs() / (this.#windowMs / 2));
    const cells = sketchCells(digest);
    const [current, before] = await this.#link.run((client) => {
      const [now, last] = [this.#key(half), this.#key(half - 1)];
      const raise = cells.flatMap((cell) => ["INCRBY", "u8", `#${cell}`, 1]);
      const read = cells.flatMap((cell) => ["GET", "u8", `#${cell}`]);
      return Promise.all([
        client.call("BITFIELD", [now, "OVERFLOW", "SAT", ...raise]) as Promise<number[]>,
        client.call("BITFIELD", [last, ...read]) as Promise<number[]>,
        client.pexpire(now, this.#windowMs),
      ]);
    });
    return Math.min(...current) + Math.min(...before);
  }

  #key(half: number): string {
    return this.#link.key("cache", "asks", String(half));
  }
}
