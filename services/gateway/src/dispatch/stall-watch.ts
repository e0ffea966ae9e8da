import type { Clock } from "@atelier/core";

/** How often a call is looked at while it is silent. */
const LOOK_MS = 2_000;

/**
 * Notices when nothing has been heard for longer than is allowed. What is allowed is asked for at each look, since it
 * depends on what else the worker has to do. One timer that looks now and then, rather than one that every event resets.
 */
export class StallWatch {
  readonly #clock: Clock;
  readonly #allowedMs: () => number;
  readonly #onStall: (silentMs: number) => void;
  #heardAtMs: number;
  #takeBack: () => void;

  /** `floorMs` is the least that is ever allowed: before it nothing is asked, which most calls are over by. */
  constructor(
    clock: Clock,
    { floorMs, allowedMs, onStall }: { floorMs: number; allowedMs: () => number; onStall: (silentMs: number) => void },
  ) {
    this.#clock = clock;
    this.#allowedMs = allowedMs;
    this.#onStall = onStall;
    this.#heardAtMs = clock.nowMs();
    this.#takeBack = clock.after(Math.min(floorMs, LOOK_MS), () => this.#look());
  }

  heard(): void {
    this.#heardAtMs = this.#clock.nowMs();
  }

  stop(): void {
    this.#takeBack();
  }

  #look(): void {
    const silentMs = this.#clock.nowMs() - this.#heardAtMs;
    const leftMs = this.#allowedMs() - silentMs;
    if (leftMs <= 0) this.#onStall(silentMs);
    else this.#takeBack = this.#clock.after(Math.min(leftMs, LOOK_MS), () => this.#look());
  }
}
