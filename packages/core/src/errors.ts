/** Every way a request can fail, and whether sending it to another worker could help. */
const RETRYABLE = {
  INVALID_REQUEST: false, // the caller's to fix; `field` names where
  MODEL_NOT_FOUND: false, // no ready worker holds the named model
  INVALID_BUNDLE: false, // the model folder is damaged, incomplete or of a kind we do not read
  PAYLOAD_TOO_LARGE: false, // the body is over the limit
  UNAUTHENTICATED: false, // no key, or an unknown one
  FORBIDDEN: false, // a known key without the right
  NOT_FOUND: false, // no such route or object
  CONFLICT: false, // it contradicts what was said before, as another body under one idempotency key
  RATE_LIMITED: false, // more than the caller's own rate or concurrency allows
  QUOTA_EXCEEDED: false, // the caller's month is used up
  CANCELLED: false, // the caller went away or took it back
  DEADLINE_EXCEEDED: false, // no time left to try again in
  OVERLOADED: true, // this worker's queue is full; another's may not be
  NO_WORKER: true, // no worker is ready
  DRAINING: true, // this worker is leaving and admits nothing new
  WORKER_LOST: true, // the connection died; the image may or may not exist
  OUT_OF_MEMORY: true, // this device is full
  NUMERIC_FAILURE: false, // NaN or infinity in the latents; the same input gives it again
  STORAGE_UNAVAILABLE: true, // the work queue or the object store cannot be reached, or is full
  DEVICE_UNAVAILABLE: false, // the execution provider asked for is not here
  INTERNAL: false, // a bug; the log has the cause
} as const;

export type ErrorCode = keyof typeof RETRYABLE;

export const ERROR_CODES = Object.keys(RETRYABLE) as readonly ErrorCode[];

/** True where `code` is one of the closed list: for codes that come off the wire. */
export function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(RETRYABLE, code);
}

export interface ServingErrorOptions {
  readonly cause?: unknown;
  /** The request field at fault, as the caller spelt it. */
  readonly field?: string | undefined;
  /** When it is worth another try, from now, where that is known. */
  readonly retryAfterMs?: number | undefined;
}

/**
 * An expected failure: it crosses process boundaries and callers branch on `code`.
 * A bug is not one of these; bugs go through `invariant()` and stop the process.
 */
export class ServingError extends Error {
  override readonly name = "ServingError";
  readonly code: ErrorCode;
  readonly field: string | undefined;
  readonly retryAfterMs: number | undefined;
  /** The message without its code, for callers that show the code elsewhere. */
  readonly detail: string;

  constructor(code: ErrorCode, message: string, options: ServingErrorOptions = {}) {
    super(`[${code}] ${message}`, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.field = options.field;
    this.retryAfterMs = options.retryAfterMs;
    this.detail = message;
  }

  get retryable(): boolean {
    return RETRYABLE[this.code];
  }
}

/** `error` as a ServingError: itself if it is one, INTERNAL with the cause kept otherwise. */
export function toServingError(error: unknown): ServingError {
  if (error instanceof ServingError) return error;
  return new ServingError("INTERNAL", error instanceof Error ? error.message : String(error), { cause: error });
}
