import type { Random } from "@atelier/core";

export interface BackOffLimits {
  readonly firstMs: number;
  readonly mostMs: number;
}

/**
 * How long to wait after so many failures in a row (from 1): doubled each time, and drawn from the upper half of that, so
 * that workers which failed together do not come back together. Whole milliseconds.
 */
export function backOffMs(failures: number, { firstMs, mostMs }: BackOffLimits, random: Random): number {
  const ms = Math.min(mostMs, firstMs * 2 ** (failures - 1));
  return Math.round(ms * (0.5 + random.next() / 2));
}
