/** From this similarity on, so much of a picture may be taken over from another prompt's. */
export interface ReuseRule {
  /** Inner product of the two prompts' embeddings, each of length 1. */
  readonly minSimilarity: number;
  /** Of the steps, 0..1. */
  readonly fraction: number;
}

/**
 * The most alike first. As `npm run bench -- approximate` printed it for atelier-tiny: at most 2 points lost of the CLIP score and
 * of pictures recognised, by any kind of pair, and nothing where another product or colour is met (up to 0.813).
 * Figures: docs/approximate-cache.md.
 */
export const REUSE_TABLE: readonly ReuseRule[] = [
  { minSimilarity: 0.94, fraction: 0.6 }, // other words for the same; the largest share that was tried
  { minSimilarity: 0.84, fraction: 0.2 }, // something left out or added: a scene, a style, a pattern
];

const NOTHING: readonly ReuseRule[] = [];
const LEARNED_ON = "atelier-tiny";

/**
 * Nothing for a model on which it was not measured: another text encoder has another measure of what is alike, and might
 * take a blue mug for a red one.
 */
export function reuseTableOf(model: string): readonly ReuseRule[] {
  return model === LEARNED_ON ? REUSE_TABLE : NOTHING;
}

/** The share of the steps that may be left out; 0: none. */
export function fractionOf(similarity: number, table: readonly ReuseRule[]): number {
  return table.find(({ minSimilarity }) => similarity >= minSimilarity)?.fraction ?? 0;
}

/** The steps at which latents are of use, ascending: those that some rule has a picture of `steps` begin at. */
export function usefulSteps(steps: number, table: readonly ReuseRule[]): readonly number[] {
  const found = new Set(table.map(({ fraction }) => stepOf(steps, fraction)).filter((step) => step > 0));
  return [...found].sort((a, b) => a - b);
}

/** Steps between checkpoints that meet those, or are at least a tenth of all: each costs its bytes on the way here. */
export function checkpointEvery(steps: number, table: readonly ReuseRule[]): number {
  const met = usefulSteps(steps, table).reduce((a, b) => commonDivisor(a, b), 0);
  return Math.max(1, met, Math.floor(steps / 10));
}

/** The first step to run of `steps` where this share of them is left out: 0, or below `steps`. */
export function stepOf(steps: number, fraction: number): number {
  return Math.max(0, Math.min(steps - 1, Math.floor(steps * fraction)));
}

function commonDivisor(a: number, b: number): number {
  return b === 0 ? a : commonDivisor(b, a % b);
}
