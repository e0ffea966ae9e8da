import type { ErrorCode, ServingError } from "@atelier/core";

/** What becomes of an item that was not made. */
export type Verdict =
  /** No fault of the item's: somebody else's turn, and it does not count as an attempt. */
  | "hand-back"
  /** Another try may mend it. */
  | "retry"
  /** It ends as failed, since no other try would do better. */
  | "fail"
  /** It ends as failed, and lies among the dead letters: it was tried as often as an item may be. */
  | "bury";

/** The item asks for what cannot be made, on any worker and at any time. */
const ITEMS_OWN: ReadonlySet<ErrorCode> = new Set(["INVALID_REQUEST", "NUMERIC_FAILURE", "PAYLOAD_TOO_LARGE"]);
/** The worker, the queue or the store is full, away or leaving; of an item that says nothing. */
const NOT_ITEMS: ReadonlySet<ErrorCode> = new Set(["DRAINING", "STORAGE_UNAVAILABLE", "OVERLOADED", "NO_WORKER"]);

/**
 * Every other code counts as an attempt, those included that a request's caller is told not to try again with: a model
 * folder that is damaged on this worker may be whole on the next, and must not fail a job's items one after another.
 */
export function judge(
  error: ServingError,
  { attempt, attemptsMax }: { attempt: number; attemptsMax: number },
): Verdict {
  if (NOT_ITEMS.has(error.code)) return "hand-back";
  if (ITEMS_OWN.has(error.code)) return "fail";
  return attempt >= attemptsMax ? "bury" : "retry";
}
