/** What HTTP servers of ours have in common. Knows no route, and nothing of what they are about. */
export { chooseMediaType } from "./accept.ts";
export {
  type ErrorBody,
  type ErrorReply,
  errorBody,
  errorReply,
  HTTP_STATUS,
  HttpRefusal,
  readableError,
  retryAfterSeconds,
} from "./error-reply.ts";
export { EVENT_STREAM_HEADERS, EVENT_STREAM_TYPE, EventStream, headersOut } from "./event-stream.ts";
export { type FailureOptions, noteFailedRequest } from "./failed-request.ts";
export { IDEMPOTENCY_HEADER, readIdempotencyKey } from "./idempotency-key.ts";
export { checkInternalCaller } from "./internal-caller.ts";
export { acceptJsonOnly } from "./json-body.ts";
export { listen } from "./listen.ts";
export { isLoopback } from "./loopback.ts";
export { refuseUnknownRoutes } from "./not-found.ts";
export {
  collectOpenApi,
  errorResponses,
  failuresAs,
  openApiRoute,
  sentAsBytes,
  sentAsStream,
  sentAsWritten,
} from "./openapi.ts";
export { REQUEST_ID_HEADER, requestIdOf } from "./request-id.ts";
export { withinRequest } from "./request-scope.ts";
export { setSecurityHeaders } from "./security-headers.ts";
export { buildServer, type EndedRequest, type HttpApp, type ServerOptions } from "./server.ts";
export { FieldRefusal, readStrictly, showValue, strictValidator } from "./validation.ts";
