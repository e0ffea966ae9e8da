import type { Clock } from "@atelier/core";

/** Changes within this time are told as one. */
const COALESCE_MS = 50;
/** A watcher hears at least this often, so that it notices when it no longer does. */
const HEARTBEAT_MS = 1000;

/**
 * Tells watchers the worker's state: at once when it changes after a quiet time, then at most every 50 ms, and every
 * second in any case. Every publication has a higher sequence number than the one before.
 */
export class StatePublisher<State> {
  readonly #clock: Clock;
  readonly #describe: (sequence: bigint) => State;
  readonly #watchers = new Set<(state: State) => void>();
  #sequence = 0n;
  #publishedAtMs = -Infinity;
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
    if (this.#watchers.size === 0) return;
    this.#schedule(Math.max(0, this.#publishedAtMs + COALESCE_MS - this.#clock.nowMs()));
  }

  /** Replaces the timer that runs; a change is due sooner than a heartbeat, and another change is due with the first. */
  #schedule(delayMs: number): void {
    this.#takeBack?.();
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
