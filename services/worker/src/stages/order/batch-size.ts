/**
 * A job joins a batch where that costs at most this share of what it would cost alone: less is a clear gain, more is
 * within the noise of the table and would only make the others' steps longer.
 */
const JOIN_COST_MAX = 0.85;
/**
 * The same on a narrow lane. One CPU thread gains 5 to 10 % by batching, less than its times vary with what the other
 * lanes do; a batch that was formed on such noise keeps its lane for long, while the others run dry.
 */
const NARROW_JOIN_COST_MAX = 0.6;
/** How much less urgent jobs may slow a batch that they join. */
const SLOWED_MAX = 1.25;

export interface BatchCandidates {
  /** Rows of each job's step, in the order in which they would join; the first is the leader, which is always in. */
  readonly rows: readonly number[];
  /** How many of them, from the front, may slow the leader; those after them join only where it hardly notices. */
  readonly equals: number;
  /** Predicted milliseconds of one run of so many rows. */
  readonly runMs: (rows: number) => number;
  readonly narrow: boolean;
  readonly jobsMax: number;
  readonly rowsMax: number;
}

/**
 * How many of the candidates, from the front, make the best batch: where the time saved against running each alone is
 * greatest. Every size is looked at, not only the next: one noisy entry of the table must not keep batches small. Where
 * nothing is known there is nothing to save: learning starts with single jobs, and goes on with all that may join.
 */
export function batchSize({ rows, equals, runMs, narrow, jobsMax, rowsMax }: BatchCandidates): number {
  let best = 1;
  let bestSavedMs = 0;
  let slowestMs = Infinity;
  let sum = rows[0]!;
  let apartMs = 0;
  let before = runMs(sum);
  const aloneMs = before;
  for (let jobs = 2; jobs <= Math.min(rows.length, jobsMax); jobs++) {
    if (jobs === Math.max(2, equals + 1)) slowestMs = SLOWED_MAX * before;
    const joining = rows[jobs - 1]!;
    sum += joining;
    if (sum > rowsMax) break;
    const togetherMs = runMs(sum);
    if (jobs > equals && togetherMs > slowestMs) break;
    apartMs += runMs(joining);
    const savedMs = (narrow ? NARROW_JOIN_COST_MAX : JOIN_COST_MAX) * apartMs - (togetherMs - aloneMs);
    if (savedMs > bestSavedMs) [best, bestSavedMs] = [jobs, savedMs];
    before = togetherMs;
  }
  return best;
}
