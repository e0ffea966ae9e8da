import type { Outcome } from "./run-trace.ts";

/** Requests from the start of a trace that are left out: the fleet is empty then. */
const WARM_UP_SHARE = 0.1;

/** How many times longer each took than on a worker of its own, in rising order. */
export function slowdowns(outcomes: readonly Outcome[]): Float64Array {
  const from = outcomes.length * WARM_UP_SHARE;
  const measured = outcomes.filter(({ request }) => request.id >= from);
  return Float64Array.from(measured, ({ latencyMs, request }) => latencyMs / request.serviceMs).sort();
}

export function p99Slowdown(outcomes: readonly Outcome[]): number {
  return atRank(slowdowns(outcomes), 0.99);
}

/** The smallest of `sorted` that at least the share `p` of them does not exceed. */
export function atRank(sorted: Float64Array, p: number): number {
  return sorted[Math.max(0, Math.ceil(p * sorted.length) - 1)]!;
}
