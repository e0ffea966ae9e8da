const SLOT_MS = 1_000;

/** How fast items end: so many, and so many device milliseconds, over the last while or since the first. */
export class Pace {
  readonly #windowMs: number;
  readonly #items: Float64Array;
  readonly #deviceMs: Float64Array;
  /** The second that a slot is of. */
  readonly #seconds: Float64Array;
  #firstMs: number | undefined;

  /** `windowMs`: how long back it looks. */
  constructor(windowMs: number) {
    const slots = Math.ceil(windowMs / SLOT_MS);
    this.#windowMs = slots * SLOT_MS;
    this.#items = new Float64Array(slots);
    this.#deviceMs = new Float64Array(slots);
    this.#seconds = new Float64Array(slots).fill(-1);
  }

  /** An item ended that took so much of a device. */
  note(nowMs: number, deviceMs: number): void {
    this.#firstMs ??= nowMs;
    const second = Math.floor(nowMs / SLOT_MS);
    const slot = second % this.#seconds.length;
    if (this.#seconds[slot] !== second) {
      this.#seconds[slot] = second;
      this.#items[slot] = 0;
      this.#deviceMs[slot] = 0;
    }
    this.#items[slot]! += 1;
    this.#deviceMs[slot]! += deviceMs;
  }

  /** By millisecond; 0 of both where nothing ended in the window. */
  at(nowMs: number): { readonly items: number; readonly deviceMs: number } {
    const from = Math.floor(nowMs / SLOT_MS) - this.#seconds.length;
    let items = 0;
    let deviceMs = 0;
    this.#seconds.forEach((second, slot) => {
      if (second <= from) return;
      items += this.#items[slot]!;
      deviceMs += this.#deviceMs[slot]!;
    });
    // The first items ended when they had been begun for a while already: a slot's length stands for that.
    const overMs = Math.min(this.#windowMs, Math.max(SLOT_MS, nowMs - (this.#firstMs ?? nowMs)));
    return { items: items / overMs, deviceMs: deviceMs / overMs };
  }

  /**
   * Milliseconds until what is left has ended, as it goes now: by device time where items say what they took, since those
   * that are left may be larger; otherwise by number. Undefined where nothing ended lately.
   */
  etaMs(nowMs: number, left: { readonly items: number; readonly deviceMs: number }): number | undefined {
    const pace = this.at(nowMs);
    if (pace.deviceMs > 0 && left.deviceMs > 0) return left.deviceMs / pace.deviceMs;
    return pace.items > 0 ? left.items / pace.items : undefined;
  }
}

/** Work that is taken in so long is handed out ahead; longer makes pausing and fairness coarse, shorter starves workers. */
const AHEAD_MS = 5_000;
const WINDOW_ITEMS_MIN = 64;
const WINDOW_ITEMS_MAX = 5_000;

/** How many items may be handed out and not ended, of a class and model whose items end at this pace. */
export function windowOf(pace: Pace, nowMs: number): number {
  return Math.min(WINDOW_ITEMS_MAX, Math.max(WINDOW_ITEMS_MIN, Math.ceil(pace.at(nowMs).items * AHEAD_MS)));
}
