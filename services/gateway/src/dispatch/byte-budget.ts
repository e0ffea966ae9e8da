/** Counts bytes that are held against a limit. */
export class ByteBudget {
  readonly #max: number;
  #held = 0;

  constructor(max: number) {
    this.#max = max;
  }

  get held(): number {
    return this.#held;
  }

  /** Holds `bytes` instead of `before`; false, and nothing has changed, where they do not fit. */
  replace(before: number, bytes: number): boolean {
    const held = this.#held - before + bytes;
    if (held > this.#max && bytes > before) return false;
    this.#held = held;
    return true;
  }
}
