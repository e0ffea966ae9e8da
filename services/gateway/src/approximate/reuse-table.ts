/** From this similarity on, so much of a picture may be taken over from another prompt's. */
export interface ReuseRule {
  /** Inner product of the two prompts' embeddings, each of length 1. */
  readonly minSimilarity: number;
  /** Of the steps, 0..1. */
  readonly fraction: number;
}

/** The most alike first. A strict one, by guess: nothing has been learned of any model here. */
export const REUSE_TABLE: readonly ReuseRule[] = [
  { minSimilarity: 0.98, fraction: 0.4 },
  { minSimilarity: 0.95, fraction: 0.2 },
];

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
