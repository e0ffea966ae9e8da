import type { Clock } from "@atelier/core";

/** How often something was asked of late; bounded in memory, so it may count a little too much, and never too little. */
export interface AskCounts {
  /** Counts one more, and tells the count. */
  add(digest: string): Promise<number>;
}

export const SKETCH_ROWS = 4;
/** A quarter of a million rare prompts in a window make one in six of them look asked twice. */
export const SKETCH_COLUMNS = 2 ** 18;
export const COUNT_MAX = 255;

/**
 * Where a digest counts in each row; hex digits of a SHA-256 are as good as independent hashes.
 *
 * Source: Cormode and Muthukrishnan, "An Improved Data Stream Summary: The Count-Min Sketch", J. Algorithms 55(1), 2005.
 */
export function sketchCells(digest: string): readonly number[] {
  return Array.from({ length: SKETCH_ROWS }, (_, row) => {
    const column = Number.parseInt(digest.slice(row * 8, row * 8 + 8), 16) % SKETCH_COLUMNS;
    return row * SKETCH_COLUMNS + column;
  });
}

/**
 * Counts in this process: a sketch for the window's running half and one for the half before, so that what is forgotten
 * was asked at least half a window ago. 2 MiB.
 */
export class OwnAskCounts implements AskCounts {
  readonly #clock: Clock;
  readonly #halfMs: number;
  #half = Number.NEGATIVE_INFINITY;
  #current = new Uint8Array(SKETCH_ROWS * SKETCH_COLUMNS);
  #before = new Uint8Array(SKETCH_ROWS * SKETCH_COLUMNS);

  constructor(clock: Clock, { windowMs }: { windowMs: number }) {
    this.#clock = clock;
    this.#halfMs = windowMs / 2;
  }

  async add(digest: string): Promise<number> {
    this.#turn();
    const cells = sketchCells(digest);
    // Only the least are raised: the others were raised by something else ("conservative update").
    const least = countIn(this.#current, cells);
    for (const cell of cells) {
      if (this.#current[cell] === least && least < COUNT_MAX) this.#current[cell] = least + 1;
    }
    return Math.min(COUNT_MAX, least + 1) + countIn(this.#before, cells);
  }

  #turn(): void {
    const half = Math.floor(this.#clock.nowMs() / this.#halfMs);
    if (half === this.#half) return;
    [this.#current, this.#before] = [this.#before, this.#current];
    if (half !== this.#half + 1) this.#before.fill(0);
    this.#current.fill(0);
    this.#half = half;
  }
}

function countIn(sketch: Uint8Array, cells: readonly number[]): number {
  return Math.min(...cells.map((cell) => sketch[cell]!));
}
