import { type Clock, type Random, ServingError, toServingError } from "@atelier/core";
import type { WorkerState } from "@atelier/proto";
import { backoffMs } from "./backoff.ts";
import type { StreamHandlers } from "./worker-client.ts";

/**
 * Silence after which a worker counts as lost. It speaks each second; ten times that leaves room for a loaded machine,
 * and a worker that hangs without dropping its connection is still found well before a request's deadline.
 */
export const SILENCE_MAX_MS = 10_000;

export interface WatchOptions {
  /** Opens the state stream; the result closes it. */
  readonly open: (handlers: StreamHandlers<WorkerState>) => () => void;
  readonly clock: Clock;
  readonly random: Random;
  /** A newer state than the last one. May throw a ServingError to refuse it, which ends the stream. */
  readonly onState: (state: WorkerState) => void;
  /** The stream broke; another attempt follows by itself. */
  readonly onLost: (reason: ServingError) => void;
}

/** Keeps one worker's state stream open: reopens it with backoff when it breaks or falls silent. */
export class WorkerWatch {
  readonly #options: WatchOptions;
  #failures = 0;
  #closeStream: () => void = () => {};
  #cancelTimer: () => void = () => {};

  constructor(options: WatchOptions) {
    this.#options = options;
  }

  start(): void {
    // A worker that restarts counts from the beginning again, so sequences compare within one stream only.
    let lastSequence = -1n;
    this.#awaitNext();
    this.#closeStream = this.#options.open({
      message: (state) => {
        this.#awaitNext();
        if (state.sequence <= lastSequence) return;
        lastSequence = state.sequence;
        this.#take(state);
      },
      end: (failure) => this.#lost(failure ?? new ServingError("WORKER_LOST", "the worker closed its state stream")),
    });
  }

  stop(): void {
    this.#cancelTimer();
    this.#closeStream();
  }

  #take(state: WorkerState): void {
    try {
      this.#options.onState(state);
      this.#failures = 0;
    } catch (error) {
      this.#closeStream();
      this.#lost(toServingError(error));
    }
  }

  #awaitNext(): void {
    this.#cancelTimer();
    this.#cancelTimer = this.#options.clock.after(SILENCE_MAX_MS, () => {
      this.#closeStream();
      this.#lost(new ServingError("WORKER_LOST", `no word from the worker for ${SILENCE_MAX_MS} ms`));
    });
  }

  #lost(reason: ServingError): void {
    this.#failures += 1;
    this.#cancelTimer();
    this.#cancelTimer = this.#options.clock.after(backoffMs(this.#failures, this.#options.random), () => this.start());
    this.#options.onLost(reason);
  }
}
