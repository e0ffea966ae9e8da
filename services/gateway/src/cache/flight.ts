import { type Clock, Deadline, InvariantError, ServingError } from "@atelier/core";
import type { MakeLimits, ServiceOrder } from "../generations/ports.ts";
import type { GenerationEvent } from "../image-request.ts";

/** One of those who want what a flight is about. */
export interface Passenger {
  readonly deadline: Deadline;
  /** Aborted with a ServingError when it wants it no more. */
  readonly signal: AbortSignal;
  readonly onEvent?: ((event: GenerationEvent) => void) | undefined;
  /** It asked for previews; others are not bothered with those. */
  readonly previews: boolean;
}

export interface Landed<T> {
  readonly result: T;
  /** For the first of those who waited to the end: on whose account it was. */
  readonly first: boolean;
}

export interface FlightOptions<T> {
  readonly clock: Clock;
  readonly order: ServiceOrder;
  readonly fly: (limits: MakeLimits) => Promise<T>;
  /** Told once, when nobody can join any more. */
  readonly onEnd: () => void;
}

/**
 * One making that any number of requests wait for. Nobody is at its helm: it goes on while one of them waits, each may
 * leave when it wants or when its own time is up, and each hears what has happened so far when it joins.
 *
 * It flies under the latest deadline of those who wait when it starts. Should it fail for want of time, the failure is
 * theirs who had no more; for those who joined later and have more it starts again.
 */
export class Flight<T> {
  readonly order: ServiceOrder;
  readonly #options: FlightOptions<T>;
  readonly #waiting = new Set<Waiter<T>>();
  readonly #deserted = new AbortController();
  #accepted: GenerationEvent | undefined;
  #progress: GenerationEvent | undefined;
  #deadlineMs = 0;
  #over = false;

  constructor(options: FlightOptions<T>) {
    this.#options = options;
    this.order = options.order;
  }

  /** False once it has landed, failed or been left by everybody: nobody can join any more. */
  get open(): boolean {
    return !this.#over;
  }

  /** Starts with its first passenger. Rejects as `fly` does, or with the reason of the passenger's own signal. */
  join(passenger: Passenger): Promise<Landed<T>> {
    const { signal, onEvent } = passenger;
    const starts = this.#waiting.size === 0;
    const landing = Promise.withResolvers<Landed<T>>();
    const waiter: Waiter<T> = { passenger, landing, end: () => {} };
    const leave = () => this.#leave(waiter, signal.reason);
    if (signal.aborted) return Promise.reject(signal.reason);
    signal.addEventListener("abort", leave);
    waiter.end = () => signal.removeEventListener("abort", leave);
    this.#waiting.add(waiter);
    if (this.#accepted !== undefined) onEvent?.(this.#accepted);
    if (this.#progress !== undefined) onEvent?.(this.#progress);
    if (starts) void this.#run();
    else this.#watchDeadline(waiter);
    return landing.promise;
  }

  async #run(): Promise<void> {
    const { clock, order, fly } = this.#options;
    while (this.#waiting.size > 0) {
      const deadline = new Deadline(clock, Math.max(...this.#passengers().map(({ deadline: { atMs } }) => atMs)));
      this.#deadlineMs = deadline.atMs;
      for (const waiter of this.#waiting) this.#watchDeadline(waiter);
      try {
        const signal = this.#deserted.signal;
        const result = await fly({ order, deadline, signal, onEvent: (event) => this.#tell(event) });
        this.#land();
        let first = true;
        for (const waiter of this.#waiting) {
          this.#end(waiter).resolve({ result, first });
          first = false;
        }
      } catch (error) {
        if (this.#waiting.size === 0 && error instanceof InvariantError) throw error; // nobody is left to report it
        // What more time may mend is not the failure of those who have more.
        const forWant = error instanceof ServingError && ENDS_OF_TIME.has(error.code);
        const failed = [...this.#waiting].filter(
          ({ passenger }) => !forWant || passenger.deadline.atMs <= deadline.atMs,
        );
        if (failed.length === this.#waiting.size) this.#land();
        for (const waiter of failed) this.#end(waiter).reject(error);
      }
    }
  }

  #land(): void {
    if (this.#over) return;
    this.#over = true;
    this.#options.onEnd();
  }

  #tell(event: GenerationEvent): void {
    if (event.type === "accepted") this.#accepted = event;
    if (event.type === "progress") this.#progress = event;
    for (const { onEvent, previews } of this.#passengers()) {
      if (event.type !== "preview" || previews) onEvent?.(event);
    }
  }

  /** Of one whose time is up before the making's own is, which ends by itself. */
  #watchDeadline(waiter: Waiter<T>): void {
    const { deadline } = waiter.passenger;
    if (deadline.atMs >= this.#deadlineMs) return;
    const endBefore = waiter.end;
    const cancel = this.#options.clock.after(deadline.leftMs, () => {
      this.#leave(waiter, new ServingError("DEADLINE_EXCEEDED", "the picture was still being made when time was up"));
    });
    waiter.end = () => {
      cancel();
      endBefore();
    };
  }

  #leave(waiter: Waiter<T>, reason: unknown): void {
    if (!this.#waiting.has(waiter)) return;
    this.#end(waiter).reject(reason);
    if (this.#waiting.size > 0) return;
    this.#land();
    this.#deserted.abort(reason);
  }

  #end(waiter: Waiter<T>): PromiseWithResolvers<Landed<T>> {
    this.#waiting.delete(waiter);
    waiter.end();
    return waiter.landing;
  }

  #passengers(): readonly Passenger[] {
    return Array.from(this.#waiting, ({ passenger }) => passenger);
  }
}

interface Waiter<T> {
  readonly passenger: Passenger;
  readonly landing: PromiseWithResolvers<Landed<T>>;
  end: () => void;
}

/** Admission refuses as OVERLOADED what it predicts to come too late. */
const ENDS_OF_TIME: ReadonlySet<string> = new Set(["DEADLINE_EXCEEDED", "OVERLOADED"]);
