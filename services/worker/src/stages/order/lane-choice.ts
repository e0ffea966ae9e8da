/** Jobs of one kind, which can share a batch, and what their runs take. */
export interface StepDemand {
  /** Rows of each job's step. */
  readonly rows: readonly number[];
  /** Predicted milliseconds of one run of so many rows, on the wide lane and on a narrow one. */
  readonly wideMs: (rows: number) => number;
  readonly narrowMs: (rows: number) => number;
}

/** Milliseconds in which every job makes one step on the wide lane: one batch after another. */
export function wideRoundMs(demands: readonly StepDemand[], jobsMax: number): number {
  return demands.reduce((sum, { rows, wideMs }) => {
    const apartMs = rows.reduce((ms, each) => ms + wideMs(each), 0);
    const batches = Math.ceil(rows.length / jobsMax);
    const rowsEach = rows.reduce((all, each) => all + each, 0) / batches;
    return sum + Math.min(apartMs, batches * wideMs(rowsEach));
  }, 0);
}

/**
 * The same on `lanes` narrow lanes side by side, each taking one job at a time. Jobs take turns on the lanes from step
 * to step, so five jobs on four lanes take 5/4 of a step's time, not two.
 */
export function narrowRoundMs(demands: readonly StepDemand[], lanes: number): number {
  const steps = demands.flatMap(({ rows, narrowMs }) => rows.map(narrowMs));
  const sumMs = steps.reduce((sum, ms) => sum + ms, 0);
  return Math.max(sumMs / lanes, ...steps);
}
