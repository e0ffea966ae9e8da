import { ServingError } from "@atelier/core";

/**
 * The generations that this gateway is in the middle of. It has a limit and no queue: what does not fit is refused at
 * once, since a caller that retries elsewhere is served sooner than one that waits here.
 */
export class InFlight {
  readonly #max: number;
  readonly #running = new Set<AbortController>();
  #stopping = false;

  constructor({ max }: { max: number }) {
    this.#max = max;
  }

  get count(): number {
    return this.#running.size;
  }

  get stopping(): boolean {
    return this.#stopping;
  }

  /** @throws ServingError OVERLOADED when full, DRAINING once stopping. */
  enter(): InFlightTicket {
    this.checkOpen();
    if (this.#running.size >= this.#max) {
      throw new ServingError("OVERLOADED", `${this.#max} generations are in flight here, which is the limit`);
    }
    const controller = new AbortController();
    this.#running.add(controller);
    return {
      signal: controller.signal,
      abort: (reason) => controller.abort(reason),
      leave: () => {
        this.#running.delete(controller);
      },
    };
  }

  /** @throws ServingError DRAINING once stopping. */
  checkOpen(): void {
    if (this.#stopping) throw new ServingError("DRAINING", "this gateway is stopping; another takes new requests");
  }

  /** From now on nothing enters. */
  stop(): void {
    this.#stopping = true;
  }

  /** Ends everything that runs, with `reason`. */
  abortAll(reason: ServingError): void {
    for (const controller of this.#running) controller.abort(reason);
  }
}

export interface InFlightTicket {
  /** Aborted with a ServingError that says why the generation must end. */
  readonly signal: AbortSignal;
  abort(reason: ServingError): void;
  leave(): void;
}
