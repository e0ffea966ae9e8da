import type { Clock } from "@atelier/core";

/** Changes within this time are told as one. */
const COALESCE_MS = 50;
/**
 * And those that make it busier within this time: what several gateways do not know of each other for 50 ms costs their
 * callers 40 % of the p99 slowdown on 64 workers (docs/decisions/0008-placement.md).
 */
const TOOK_ON_COALESCE_MS = 5;
/** A watcher hears at least this often, so that it notices when it no longer does. */
const HEARTBEAT_MS = 1000;

/**
 * Tells watchers the worker's state: at once when it changes after a quiet time, then at most every 50 ms (every 5 ms
 * where it took work on), and every second in any case. Every publication has a higher sequence number than the one before.
 */
export class StatePublisher<State> {
  readonly #clock: Clock;
  readonly #describe: (sequence: bigint) => State;
  readonly #watchers = new Set<(state: State) => void>();
  #sequence = 0n;
  #publishedAtMs = -Infinity;
  #dueAtMs = 0;
  #takeBack: (() => void) | undefined;

  constructor(clock: Clock, describe: (sequence: bigint) => State) {
    this.#clock = clock;
    this.#describe = describe;
  }

  /** `watcher` hears the present state at once. The result ends it. */
  watch(watcher: (state: State) => void): () => void {
    this.#watchers.add(watcher);
    watcher(this.#next());
    if (this.#takeBack === undefined) this.#schedule(HEARTBEAT_MS);
    return () => {
      this.#watchers.delete(watcher);
      if (this.#watchers.size > 0) return;
      this.#takeBack?.();
      this.#takeBack = undefined;
    };
  }

  changed(): void {
    this.#changedWithin(COALESCE_MS);
  }

  /** Work was taken on: others that place here must know at once, or they take it for free. */
  tookOn(): void {
    this.#changedWithin(TOOK_ON_COALESCE_MS);
  }

  #changedWithin(coalesceMs: number): void {
    if (this.#watchers.size === 0) return;
    this.#schedule(Math.max(0, this.#publishedAtMs + coalesceMs - this.#clock.nowMs()));
  }

  /** Replaces a timer that would run later: one publication is for all that is due. */
  #schedule(delayMs: number): void {
    const dueAtMs = this.#clock.nowMs() + delayMs;
    if (this.#takeBack !== undefined && this.#dueAtMs <= dueAtMs) return;
    this.#takeBack?.();
    this.#dueAtMs = dueAtMs;
    this.#takeBack = this.#clock.after(delayMs, () => this.#publish());
  }

  #publish(): void {
    this.#takeBack = undefined;
    this.#publishedAtMs = this.#clock.nowMs();
    const state = this.#next();
    for (const watcher of [...this.#watchers]) watcher(state);
    this.#schedule(HEARTBEAT_MS);
  }

  /** A number for something else that is told of the state now: it is newer than every state before, older than those after. */
  nextSequence(): bigint {
    this.#sequence += 1n;
    return this.#sequence;
  }

  #next(): State {
    return this.#describe(this.nextSequence());
  }
}
