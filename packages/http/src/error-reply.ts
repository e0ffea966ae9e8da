import { type ErrorCode, InvariantError, ServingError, toServingError } from "@atelier/core";
import type { FastifyError } from "fastify";
import { z } from "zod";

/** The one place where a failure becomes an HTTP status. */
export const HTTP_STATUS: Record<ErrorCode, number> = {
  INVALID_REQUEST: 400,
  UNAUTHENTICATED: 401,
  FORBIDDEN: 403,
  MODEL_NOT_FOUND: 404,
  NOT_FOUND: 404,
  CONFLICT: 409,
  PAYLOAD_TOO_LARGE: 413,
  INVALID_BUNDLE: 422,
  RATE_LIMITED: 429,
  QUOTA_EXCEEDED: 429,
  CANCELLED: 499, // nginx's number for a client that went away; nobody reads it but our own log and metrics
  INTERNAL: 500,
  NUMERIC_FAILURE: 500,
  DEVICE_UNAVAILABLE: 500,
  WORKER_LOST: 502,
  OVERLOADED: 503,
  NO_WORKER: 503,
  DRAINING: 503,
  STORAGE_UNAVAILABLE: 503,
  DEADLINE_EXCEEDED: 504,
  OUT_OF_MEMORY: 507,
};

/**
 * Seconds that a caller is asked to wait before it tries again. A gateway that stops has a successor at once; a full
 * one frees a place with the next picture; a worker that is missing takes about this long to load its model.
 */
const RETRY_AFTER_S: Partial<Record<ErrorCode, number>> = {
  DRAINING: 1,
  OVERLOADED: 2,
  NO_WORKER: 5,
  STORAGE_UNAVAILABLE: 5,
};

export const errorBody = z
  .object({
    error: z.object({
      code: z.string().describe("One of a closed list; branch on this."),
      message: z.string().describe("For people. Names the value at fault and what is allowed."),
      field: z.string().optional().describe("The request field at fault, when one is."),
      request_id: z.string(),
    }),
  })
  .meta({ id: "Error", description: "The request failed; `error.code` says how." });

export type ErrorBody = z.infer<typeof errorBody>;

export interface HttpRefusalOptions {
  readonly code?: ErrorCode;
  readonly field?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** A failure of HTTP's own, whose status says more than the code's. */
export class HttpRefusal extends ServingError {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    { code = "INVALID_REQUEST", field, headers = {} }: HttpRefusalOptions = {},
  ) {
    super(code, message, { field });
    this.status = status;
    this.headers = headers;
  }
}

declare module "fastify" {
  interface FastifyContextConfig {
    /** Words the route's failures as its dialect does; absent: as ours does. Must not throw. */
    wordFailure?: (error: ServingError, answer: ErrorReply) => ErrorReply;
  }
}

export interface ErrorReply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: object;
}

export function errorReply(error: ServingError, requestId: string): ErrorReply & { readonly body: ErrorBody } {
  const retryAfterS = retryAfterSeconds(error);
  return {
    status: error instanceof HttpRefusal ? error.status : HTTP_STATUS[error.code],
    headers: {
      ...(retryAfterS === undefined ? {} : { "retry-after": String(retryAfterS) }),
      // Every 401 says how to do better (RFC 9110, section 15.5.2).
      ...(error.code === "UNAUTHENTICATED" ? { "www-authenticate": 'Bearer realm="atelier"' } : {}),
      ...(error instanceof HttpRefusal ? error.headers : {}),
    },
    body: {
      error: {
        code: error.code,
        message: error.detail,
        ...(error.field === undefined ? {} : { field: error.field }),
        request_id: requestId,
      },
    },
  };
}

/** What the failure itself knows comes before what its kind suggests. HTTP counts whole seconds (RFC 9110, 10.2.3). */
export function retryAfterSeconds({ code, retryAfterMs }: ServingError): number | undefined {
  return retryAfterMs === undefined ? RETRY_AFTER_S[code] : Math.max(1, Math.ceil(retryAfterMs / 1000));
}

/**
 * Whatever was thrown on the way to an answer, as a failure that a caller may read. What we did not expect keeps its
 * text for the log (as `cause`) and says nothing of our insides to the caller.
 */
export function readableError(
  thrown: unknown,
  { bodyMaxBytes, contentType }: { bodyMaxBytes: number; contentType?: string | undefined },
): ServingError {
  if (thrown instanceof ServingError) return thrown;
  const { code = "", statusCode = 500, message } = thrown as Partial<FastifyError>;
  if (thrown instanceof InvariantError || !code.startsWith("FST_") || statusCode >= 500) return internal(thrown);
  if (code === "FST_ERR_CTP_BODY_TOO_LARGE") {
    return new ServingError("PAYLOAD_TOO_LARGE", `the body is larger than ${bodyMaxBytes} bytes, which is the limit`);
  }
  if (code === "FST_ERR_CTP_INVALID_MEDIA_TYPE") {
    const complaint =
      contentType === undefined ? "there is no content-type" : `content-type ${quoted(contentType)} is not read here`;
    return new HttpRefusal(415, `${complaint}; send application/json`);
  }
  return new HttpRefusal(statusCode, message ?? "the request is not valid HTTP");
}

/** Long enough to recognize, whoever sent it. */
const quoted = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}...` : text);

function internal(thrown: unknown): ServingError {
  const { cause } = toServingError(thrown);
  return new ServingError("INTERNAL", "an error on our side; the log has it under this request_id", { cause });
}
