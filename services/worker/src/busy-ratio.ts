/** Share of the last `windowMs` in which something ran, from what is told of each run when it ends. */
export class BusyRatio {
  readonly #windowMs: number;
  #runs: { fromMs: number; toMs: number; share: number }[] = [];

  constructor(windowMs: number) {
    this.#windowMs = windowMs;
  }

  /** `share` of the device was busy from `fromMs` to `toMs`. */
  ran(fromMs: number, toMs: number, share: number): void {
    this.#runs.push({ fromMs, toMs, share });
    // Not at every run: a busy worker ends hundreds of them a second.
    if (this.#runs.length % 1024 === 0) this.#forget(toMs);
  }

  at(nowMs: number): number {
    this.#forget(nowMs);
    const sinceMs = nowMs - this.#windowMs;
    const busyMs = this.#runs.reduce(
      (sum, { fromMs, toMs, share }) => sum + share * (Math.min(toMs, nowMs) - Math.max(fromMs, sinceMs)),
      0,
    );
    return Math.min(1, Math.max(0, busyMs / this.#windowMs));
  }

  #forget(nowMs: number): void {
    this.#runs = this.#runs.filter(({ toMs }) => toMs > nowMs - this.#windowMs);
  }
}
