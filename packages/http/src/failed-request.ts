import { InvariantError, type ServingError } from "@atelier/core";
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from "fastify";
import { type ErrorReply, errorReply, readableError } from "./error-reply.ts";
import { requestIdHeaders } from "./request-id.ts";
import { withinRequest } from "./request-scope.ts";

export interface FailureOptions {
  readonly log: FastifyBaseLogger;
  readonly bodyMaxBytes: number;
  /** Told of a broken invariant after its caller was answered; a process stops on it. */
  readonly onBug: (bug: InvariantError) => void;
  /** How failures are worded outside of the routes that say so themselves; absent: as ours are. Must not throw. */
  readonly wordFailure?: (error: ServingError, answer: ErrorReply, request: FastifyRequest) => ErrorReply;
}

/** Answers with a failure, noted. */
export function sendFailure(
  thrown: unknown,
  request: FastifyRequest,
  reply: FastifyReply,
  options: FailureOptions,
): FastifyReply {
  const { status, headers, body } = noteFailedRequest(thrown, request, reply, options);
  return reply
    .code(status)
    .headers(headers)
    .headers(requestIdHeaders(request.id))
    .type("application/json; charset=utf-8")
    .send(body);
}

/**
 * Logs and counts a failure by its own status, even where the caller was long told 200, as in a stream of events; gives
 * what the caller may read of it.
 */
export function noteFailedRequest(
  thrown: unknown,
  request: FastifyRequest,
  reply: FastifyReply,
  options: FailureOptions,
): ErrorReply {
  const error = readableError(thrown, { ...options, contentType: request.headers["content-type"] });
  const ours = errorReply(error, request.id);
  // Of a route that is not there the router knows no config.
  const inItsWords = request.routeOptions.config?.wordFailure;
  const answer = inItsWords?.(error, ours) ?? options.wordFailure?.(error, ours, request) ?? ours;
  const { status } = answer;
  reply.raw.statusCode = status; // what is counted; on the wire it changes nothing once the headers are out
  const level = error.code === "INTERNAL" ? "error" : status >= 500 ? "warn" : "debug";
  withinRequest(request, (span) => {
    if (status >= 500) span.fail(error);
    options.log[level]({ request_id: request.id, code: error.code, err: error }, "request failed");
  });
  if (thrown instanceof InvariantError) {
    if (reply.raw.closed) options.onBug(thrown);
    else reply.raw.once("close", () => options.onBug(thrown));
  }
  return answer;
}
