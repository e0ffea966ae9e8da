/** Answers that are remembered. */
const WINDOW = 512;
/** Fewer say nothing of their hundredth. */
const ENOUGH = 100;
/** Before enough is known, a straggler is what takes so many times as long as predicted. */
const UNKNOWN_RATIO = 4;
/** Closer to the prediction than this every second request would be hedged. */
const RATIO_MIN = 1.5;
const QUANTILE = 0.99;

/** How long answers took beside what was predicted, lately: what is out of the ordinary is a straggler. */
export class Slowness {
  readonly #ratios: number[] = [];
  #next = 0;

  took(ms: number, predictedMs: number): void {
    if (!(predictedMs > 0)) return;
    this.#ratios[this.#next] = ms / predictedMs;
    this.#next = (this.#next + 1) % WINDOW;
  }

  /** Only one in a hundred takes longer than this many times its prediction. */
  get stragglerRatio(): number {
    if (this.#ratios.length < ENOUGH) return UNKNOWN_RATIO;
    const sorted = this.#ratios.toSorted((a, b) => a - b);
    return Math.max(RATIO_MIN, sorted[Math.floor(QUANTILE * sorted.length)]!);
  }
}
