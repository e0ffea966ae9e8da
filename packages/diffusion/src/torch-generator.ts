import { invariant } from "@atelier/core";
import { MersenneTwister } from "./mersenne-twister.ts";

/**
 * Where a generator stands: enough to go on from there in another process, with the same numbers.
 *
 * `spareNormal` is what an odd-sized draw of fewer than 16 numbers leaves for the next one. Latents are never that
 * small, so between latents it is always null and `seed` and `draws` say everything.
 */
export interface NoisePosition {
  readonly seed: bigint;
  readonly draws: number; // 32-bit words taken from the Mersenne Twister
  readonly spareNormal: number | null;
}

const SEED_MAX = 2n ** 64n - 1n;
const BLOCK = 16;

/**
 * The noise of one request: the numbers of `torch.Generator("cpu").manual_seed(seed)`, so that a seed gives here the
 * picture that it gives in diffusers.
 *
 * Equal to torch to 1e-5, not to the bit: logarithm, sine and cosine differ in the last place, between torch's own
 * builds too.
 */
export class TorchGenerator {
  readonly seed: bigint;
  readonly #twister: MersenneTwister;
  #draws = 0;
  #spareNormal: number | null = null;

  /** `seed` is 0..2^64-1, a whole number. As in torch, seeds that agree in their low 32 bits give the same noise. */
  constructor(seed: bigint | number) {
    invariant(typeof seed === "bigint" || Number.isSafeInteger(seed), `seed ${seed} is a whole number held exactly`);
    this.seed = BigInt(seed);
    invariant(this.seed >= 0n && this.seed <= SEED_MAX, `seed ${seed} is in 0..2^64-1`);
    this.#twister = new MersenneTwister(Number(this.seed & 0xffffffffn));
  }

  /** A generator that goes on where another stood. Costs about 5 ns for each draw skipped. */
  static at(position: NoisePosition): TorchGenerator {
    invariant(Number.isSafeInteger(position.draws) && position.draws >= 0, `draws ${position.draws} is a count`);
    const generator = new TorchGenerator(position.seed);
    generator.#twister.skip(position.draws);
    generator.#draws = position.draws;
    generator.#spareNormal = position.spareNormal;
    return generator;
  }

  get position(): NoisePosition {
    return { seed: this.seed, draws: this.#draws, spareNormal: this.#spareNormal };
  }

  /** `size` numbers of mean 0 and variance 1: `torch.randn(size, generator=...)` in float32, flat. */
  randn(size: number): Float32Array {
    invariant(Number.isSafeInteger(size) && size >= 0, `size ${size} is a count`);
    return size < BLOCK ? this.#fewNormals(size) : this.#manyNormals(size);
  }

  /**
   * Uniform numbers first, then made normal in blocks of 16: entry i with entry i + 8. What does not fill a block
   * takes the last 16 entries again, from fresh numbers.
   *
   * Source: `normal_fill` in ATen/native/cpu/DistributionTemplates.h.
   */
  #manyNormals(size: number): Float32Array {
    const values = new Float32Array(size);
    for (let i = 0; i < size; i++) values[i] = this.#uniformFloat();
    for (let start = 0; start + BLOCK <= size; start += BLOCK) makeBlockNormal(values, start);
    if (size % BLOCK !== 0) {
      const start = size - BLOCK;
      for (let i = start; i < size; i++) values[i] = this.#uniformFloat();
      makeBlockNormal(values, start);
    }
    return values;
  }

  /** One at a time in double precision; every second number comes from the sine that the one before left over. */
  #fewNormals(size: number): Float32Array {
    return Float32Array.from({ length: size }, () => {
      if (this.#spareNormal !== null) {
        const normal = this.#spareNormal;
        this.#spareNormal = null;
        return normal;
      }
      const u1 = this.#uniformDouble();
      const u2 = this.#uniformDouble();
      const radius = Math.sqrt(-2 * Math.log1p(-u2));
      const theta = 2 * Math.PI * u1;
      this.#spareNormal = radius * Math.sin(theta);
      return radius * Math.cos(theta);
    });
  }

  #uniformFloat(): number {
    this.#draws += 1;
    return (this.#twister.next() & 0xffffff) / 2 ** 24;
  }

  #uniformDouble(): number {
    this.#draws += 2;
    const high = this.#twister.next() & 0x1fffff; // 53 bits in all
    const low = this.#twister.next();
    return (high * 2 ** 32 + low) / 2 ** 53;
  }
}

/**
 * Box and Muller's transform on `values[start .. start + 16)`, in place.
 * Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", Ann. Math. Statist. 29(2), 1958.
 */
function makeBlockNormal(values: Float32Array, start: number): void {
  for (let i = start; i < start + BLOCK / 2; i++) {
    const u1 = 1 - values[i]!; // in (0, 1]: the logarithm is finite
    const u2 = values[i + BLOCK / 2]!;
    const radius = Math.sqrt(-2 * Math.log(u1));
    const theta = Math.fround(Math.fround(2 * Math.PI) * u2); // torch rounds here, and a large angle feels it
    values[i] = radius * Math.cos(theta);
    values[i + BLOCK / 2] = radius * Math.sin(theta);
  }
}
