/**
 * How many attempts beyond the first a gateway allows itself, over all requests: each request that comes earns a share
 * of one. In an outage every request fails, and without this each of them would be three times the load.
 *
 * It can save up as much as may be in flight at once, so that the loss of a worker with everything on it is retried whole.
 * Source: Finagle's RetryBudget (tokens deposited by requests, withdrawn by retries).
 */
export class RetryBudget {
  readonly #share: number;
  readonly #max: number;
  #saved: number;

  /** `share` of the requests may be retries, in the long run; `max` of them at once. */
  constructor({ share, max }: { share: number; max: number }) {
    this.#share = share;
    this.#max = max;
    this.#saved = max;
  }

  requestCame(): void {
    this.#saved = Math.min(this.#max, this.#saved + this.#share);
  }

  /** False where there is none left. */
  take(): boolean {
    if (this.#saved < 1) return false;
    this.#saved -= 1;
    return true;
  }
}
