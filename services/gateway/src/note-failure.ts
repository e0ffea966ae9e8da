import { InvariantError, type ServingError } from "@atelier/core";
import { readableError } from "@atelier/http";
import { currentSpan, type Logger } from "@atelier/telemetry";

export interface FailureNotes {
  readonly log: Logger;
  readonly bodyMaxBytes: number;
  readonly onBug: (bug: InvariantError) => void;
}

/** Logs a failure where no HTTP answer tells of it, reports it where it is a bug, and gives what a caller may read of it. */
export function noteFailure(thrown: unknown, id: string, { log, bodyMaxBytes, onBug }: FailureNotes): ServingError {
  const error = readableError(thrown, { bodyMaxBytes });
  currentSpan().fail(error);
  const level = error.code === "INTERNAL" ? "error" : error.code === "CANCELLED" ? "debug" : "warn";
  log[level]({ of: id, code: error.code, err: error }, "request failed");
  if (thrown instanceof InvariantError) onBug(thrown);
  return error;
}
