import type { Random } from "@atelier/core";

/** A worker that starts beside its gateway is found within a tenth of a second. */
const FIRST_MS = 100;
/** One that has been away for long costs a connection attempt every three seconds at most. */
const LAST_MS = 3_000;

/**
 * Milliseconds to wait before attempt `failures` + 1: doubling, with the upper half drawn, so that the gateways that
 * lost a worker together do not come back to it together.
 * Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("equal jitter").
 */
export function backoffMs(failures: number, random: Random): number {
  const fullMs = Math.min(LAST_MS, FIRST_MS * 2 ** (failures - 1));
  return fullMs / 2 + random.next() * (fullMs / 2);
}
