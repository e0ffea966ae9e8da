import type { RateStanding, Standing } from "./accounts.ts";

const UNITS = ["requests", "images"] as const;

/**
 * How the caller's rate limits stand, in headers: the IETF's, and those that OpenAI's clients read.
 *
 * Source: draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4; OpenAI API reference, "Rate limits", "Rate limits in
 * headers".
 */
export function rateHeaders(standing: Standing): Readonly<Record<string, string>> {
  const known = UNITS.flatMap((unit) => {
    const rate = standing[unit];
    return rate === undefined ? [] : [{ unit, rate }];
  });
  if (known.length === 0) return {};
  return {
    "ratelimit-policy": known.map(({ unit, rate }) => `"${unit}";q=${rate.limit};w=60`).join(", "),
    ratelimit: known.map(({ unit, rate }) => `"${unit}";r=${rate.remaining};t=${seconds(rate)}`).join(", "),
    ...Object.fromEntries(
      known.flatMap(({ unit, rate }) => [
        [`x-ratelimit-limit-${unit}`, String(rate.limit)],
        [`x-ratelimit-remaining-${unit}`, String(rate.remaining)],
        [`x-ratelimit-reset-${unit}`, `${seconds(rate)}s`],
      ]),
    ),
  };
}

/** Rounded up, so that who waits so long is not too early. */
function seconds({ resetMs }: RateStanding): number {
  return Math.ceil(resetMs / 1000);
}
