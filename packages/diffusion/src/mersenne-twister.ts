const STATE_WORDS = 624;
const SHIFT_WORDS = 397;

/**
 * MT19937, seeded as torch's CPU generator seeds it: by one 32-bit word.
 *
 * `skip` costs one state update for each 624 numbers (about 3 µs), so a position is kept as a count of draws rather
 * than as 2.5 KB of state.
 *
 * Source: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998; seeding from their mt19937ar.c (2002).
 */
export class MersenneTwister {
  readonly #state = new Uint32Array(STATE_WORDS);
  /** Words of the present state already given out; a full count means that the next draw updates the state. */
  #used = STATE_WORDS;

  /** `seed` is taken modulo 2^32. */
  constructor(seed: number) {
    const state = this.#state;
    state[0] = seed;
    for (let i = 1; i < STATE_WORDS; i++) {
      const previous = state[i - 1]!;
      state[i] = Math.imul(1_812_433_253, previous ^ (previous >>> 30)) + i;
    }
  }

  /** The next number, uniform over 0..2^32-1. */
  next(): number {
    if (this.#used === STATE_WORDS) this.#update();
    let y = this.#state[this.#used++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return y >>> 0;
  }

  /** Leaves the generator as `count` calls of `next` would. */
  skip(count: number): void {
    let left = count;
    while (left > 0) {
      if (this.#used === STATE_WORDS) this.#update();
      const taken = Math.min(left, STATE_WORDS - this.#used);
      this.#used += taken;
      left -= taken;
    }
  }

  #update(): void {
    const state = this.#state;
    // Three runs rather than one with a modulo: this is the whole cost of `skip`.
    for (let i = 0; i < STATE_WORDS - SHIFT_WORDS; i++) {
      state[i] = state[i + SHIFT_WORDS]! ^ twist(state[i]!, state[i + 1]!);
    }
    for (let i = STATE_WORDS - SHIFT_WORDS; i < STATE_WORDS - 1; i++) {
      state[i] = state[i + SHIFT_WORDS - STATE_WORDS]! ^ twist(state[i]!, state[i + 1]!);
    }
    state[STATE_WORDS - 1] = state[SHIFT_WORDS - 1]! ^ twist(state[STATE_WORDS - 1]!, state[0]!);
    this.#used = 0;
  }
}

function twist(u: number, v: number): number {
  const mixed = (u & 0x80000000) | (v & 0x7fffffff);
  return (mixed >>> 1) ^ (v & 1 ? 0x9908b0df : 0);
}
