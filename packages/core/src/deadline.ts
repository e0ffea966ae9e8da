import type { Clock } from "./clock.ts";
import { ServingError } from "./errors.ts";

/** A moment after which nobody waits for the answer. Travels as an absolute time; gRPC carries it between processes. */
export class Deadline {
  readonly atMs: number;
  readonly #clock: Clock;

  constructor(clock: Clock, atMs: number) {
    this.#clock = clock;
    this.atMs = atMs;
  }

  static after(clock: Clock, delayMs: number): Deadline {
    return new Deadline(clock, clock.nowMs() + delayMs);
  }

  /** Milliseconds left, never below 0. */
  get leftMs(): number {
    return Math.max(0, this.atMs - this.#clock.nowMs());
  }

  get passed(): boolean {
    return this.leftMs === 0;
  }

  /** @throws ServingError DEADLINE_EXCEEDED naming `what` when no time is left. */
  check(what: string): void {
    if (this.passed) throw new ServingError("DEADLINE_EXCEEDED", `no time left for ${what}`);
  }
}
