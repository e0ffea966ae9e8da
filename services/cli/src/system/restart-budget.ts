import type { Clock } from "@atelier/core";

export interface RestartLimits {
  readonly restartsMax: number;
  /** Restarts older than this are forgotten. */
  readonly windowMs: number;
  /** Doubled for each restart in the window. */
  readonly firstDelayMs: number;
  readonly delayMsMax: number;
}

/** A crash that a restart cannot mend shows itself within a minute; one a day should go on for ever. */
export const RESTART_LIMITS: RestartLimits = {
  restartsMax: 5,
  windowMs: 5 * 60_000,
  firstDelayMs: 250,
  delayMsMax: 10_000,
};

/** How soon a worker that died may start again, and when it has died too often. */
export class RestartBudget {
  readonly #clock: Clock;
  readonly #limits: RestartLimits;
  #restartsAtMs: number[] = [];

  constructor(clock: Clock, limits: RestartLimits = RESTART_LIMITS) {
    this.#clock = clock;
    this.#limits = limits;
  }

  /** Takes one restart: milliseconds to wait before it, or undefined when none is left. */
  take(): number | undefined {
    const { restartsMax, windowMs, firstDelayMs, delayMsMax } = this.#limits;
    const nowMs = this.#clock.nowMs();
    this.#restartsAtMs = this.#restartsAtMs.filter((atMs) => nowMs - atMs < windowMs);
    const recent = this.#restartsAtMs.length;
    if (recent >= restartsMax) return undefined;
    this.#restartsAtMs.push(nowMs);
    return Math.min(delayMsMax, firstDelayMs * 2 ** recent);
  }
}
