import { randomBytes, randomInt } from "node:crypto";

/** Chance as an argument: decisions that draw take one of these. */
export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
}

export const systemRandom: Random = { next: () => randomInt(2 ** 47) / 2 ** 47 };

/**
 * A small seeded generator for tests and simulations: one seed, one sequence. Not for secrets.
 *
 * Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix, 32-bit variant).
 */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return {
    next: () => {
      state = (state + 0x9e3779b9) >>> 0;
      let z = state;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
    },
  };
}

/** Random bytes are drawn for so many ids at once: a draw costs as much for one as for all of them. */
const IDS_DRAWN = 256;
const ID_BYTES = 12;
let drawn = Buffer.alloc(0);

/** A new id: `prefix`, an underscore and 96 random bits in base64url. */
export function newId(prefix: string): string {
  if (drawn.length === 0) drawn = randomBytes(IDS_DRAWN * ID_BYTES);
  const bits = drawn.toString("base64url", 0, ID_BYTES);
  drawn = drawn.subarray(ID_BYTES);
  return `${prefix}_${bits}`;
}

/** A seed for a request that named none: 0..2^32-1, since torch's CPU generator looks at the low 32 bits only. */
export function newSeed(): number {
  return randomInt(2 ** 32);
}
