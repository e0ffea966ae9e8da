import type { Random } from "@atelier/core";

/** What an attempt at a call came to. */
export type CallOutcome =
  | { readonly kind: "delivered" }
  /** It did not get there, or what answered did not take it. `retryAfterMs`: when that asked to be called again. */
  | { readonly kind: "failed"; readonly retryAfterMs?: number | undefined }
  /** The receiver wants no more (410). */
  | { readonly kind: "gone" };

export type NextStep =
  | { readonly do: "nothing"; readonly status: "delivered" | "failed" | "stopped" }
  | { readonly do: "retry"; readonly atMs: number };

const DAY_MS = 24 * 3_600_000;
const FIRST_DELAY_MS = 5_000;
/** A receiver that is down for the night is found again within the hour, and hears from us two dozen times a day. */
const DELAY_MAX_MS = 3_600_000;

/**
 * When a call that failed is tried again: after 5 s, and twice as long each time up to an hour, each time between the half
 * and the whole of that, so that what failed together does not come back together. A day after it was asked for it is given up.
 */
export function afterAttempt(
  outcome: CallOutcome,
  {
    tries,
    askedAtMs,
    nowMs,
  }: {
    /** Attempts since it was asked for, this one included. */
    readonly tries: number;
    readonly askedAtMs: number;
    readonly nowMs: number;
  },
  random: Random,
): NextStep {
  if (outcome.kind === "delivered") return { do: "nothing", status: "delivered" };
  if (outcome.kind === "gone") return { do: "nothing", status: "stopped" };
  const whole = Math.min(DELAY_MAX_MS, FIRST_DELAY_MS * 2 ** (tries - 1));
  const asked = Math.min(outcome.retryAfterMs ?? 0, DELAY_MAX_MS);
  const atMs = nowMs + Math.max(asked, (whole / 2) * (1 + random.next()));
  return atMs - askedAtMs > DAY_MS ? { do: "nothing", status: "failed" } : { do: "retry", atMs };
}
