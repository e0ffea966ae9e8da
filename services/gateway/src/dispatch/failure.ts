import { ServingError } from "@atelier/core";
import type { WorkerView } from "../fleet/worker-view.ts";

/** What a failed attempt means for the next. */
export type Remedy =
  /** Another worker, or the same one when it is back. */
  | "any"
  /** Another worker, if there is one: this one has no room. */
  | "another"
  /** The same again from noise: what was made so far does not fit the worker. */
  | "from-noise"
  /** Nothing: it would fail again, or nobody waits. */
  | "none";

export function remedyFor(failure: ServingError): Remedy {
  if (failure.code === "INVALID_REQUEST" && failure.field === "resume_from") return "from-noise";
  if (!failure.retryable) return "none";
  return failure.code === "OVERLOADED" || failure.code === "OUT_OF_MEMORY" ? "another" : "any";
}

/** A failed call as the caller should read it. */
export function explain(failure: ServingError, worker: WorkerView): ServingError {
  // We did not cancel (an abort settles before its echo comes), so a cancelled call is a worker that dropped it.
  if (failure.code !== "WORKER_LOST" && failure.code !== "CANCELLED") return failure;
  const message = `worker ${worker.id} was lost before the image was finished (${failure.detail}); the request can be sent again`;
  return new ServingError("WORKER_LOST", message, { cause: failure });
}
