import { type ErrorCode, isErrorCode, ServingError, toServingError } from "@atelier/core";
import { ErrorDetailSchema } from "@atelier/proto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Metadata, type ServiceError, type StatusObject, status } from "@grpc/grpc-js";

/** Trailer that carries the ErrorDetail of a failed call. */
const TRAILER = "atelier-error-bin";

const STATUS: Record<ErrorCode, status> = {
  INVALID_REQUEST: status.INVALID_ARGUMENT,
  MODEL_NOT_FOUND: status.NOT_FOUND,
  INVALID_BUNDLE: status.FAILED_PRECONDITION,
  PAYLOAD_TOO_LARGE: status.RESOURCE_EXHAUSTED,
  UNAUTHENTICATED: status.UNAUTHENTICATED,
  FORBIDDEN: status.PERMISSION_DENIED,
  NOT_FOUND: status.NOT_FOUND,
  CONFLICT: status.ALREADY_EXISTS,
  RATE_LIMITED: status.RESOURCE_EXHAUSTED,
  QUOTA_EXCEEDED: status.RESOURCE_EXHAUSTED,
  CANCELLED: status.CANCELLED,
  DEADLINE_EXCEEDED: status.DEADLINE_EXCEEDED,
  OVERLOADED: status.RESOURCE_EXHAUSTED,
  NO_WORKER: status.UNAVAILABLE,
  DRAINING: status.UNAVAILABLE,
  WORKER_LOST: status.UNAVAILABLE,
  OUT_OF_MEMORY: status.RESOURCE_EXHAUSTED,
  NUMERIC_FAILURE: status.INTERNAL,
  STORAGE_UNAVAILABLE: status.UNAVAILABLE,
  DEVICE_UNAVAILABLE: status.FAILED_PRECONDITION,
  INTERNAL: status.INTERNAL,
};

/** The gRPC status of any failure, with its code, message and field in the trailer. */
export function statusOf(error: unknown): Partial<StatusObject> & { code: status; details: string } {
  const { code, detail, field, retryAfterMs } = toServingError(error);
  const metadata = new Metadata();
  const message = { code, message: detail, field: field ?? "", retryAfterMs: Math.ceil(retryAfterMs ?? 0) };
  const bytes = toBinary(ErrorDetailSchema, create(ErrorDetailSchema, message));
  metadata.set(TRAILER, Buffer.from(bytes));
  return { code: STATUS[code], details: detail, metadata };
}

/**
 * The other way: what a failed call means to its caller. A call that carries no trailer never reached our
 * handler's end, so a status from the transport is read as the loss of the worker.
 */
export function errorFromStatus(failure: ServiceError, peer: string): ServingError {
  const [trailer] = failure.metadata?.get(TRAILER) ?? [];
  if (Buffer.isBuffer(trailer)) {
    const { code, message, field, retryAfterMs } = fromBinary(ErrorDetailSchema, trailer);
    if (isErrorCode(code)) {
      const options = { cause: failure, field: field || undefined, retryAfterMs: retryAfterMs || undefined };
      return new ServingError(code, message, options);
    }
  }
  if (failure.code === status.CANCELLED)
    return new ServingError("CANCELLED", "the call was cancelled", { cause: failure });
  if (failure.code === status.DEADLINE_EXCEEDED) {
    return new ServingError("DEADLINE_EXCEEDED", `worker ${peer} did not answer in time`, { cause: failure });
  }
  return new ServingError("WORKER_LOST", `worker ${peer}: ${failure.details || failure.message}`, { cause: failure });
}
