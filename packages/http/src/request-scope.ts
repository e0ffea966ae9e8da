import { inScope, NO_SPAN, type Scope, type Span, startSpan, traceContextOf } from "@atelier/telemetry";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";

declare module "fastify" {
  interface FastifyRequest {
    /** Its lines in the log and its span; null of what never became a request. */
    scope: Scope | null;
  }
}

/** Asked every few seconds by those who look after the service: traces of them would hide the others. */
export const UNTRACED = new Set(["/healthz", "/readyz", "/metrics"]);

/**
 * Everything that is done for a request is done within its scope, so that each line that is logged for it names it. Call
 * before all hooks that log.
 */
export function scopeRequests(app: FastifyInstance): void {
  app.decorateRequest("scope", null);
  app.addHook("onRequest", (request, _reply, next) => {
    request.scope = { fields: { request_id: request.id }, span: spanOf(request) };
    inScope(request.scope, next);
  });
}

/** For what is called by events of its connection. */
export function withinRequest<Result>({ scope }: FastifyRequest, run: (span: Span) => Result): Result {
  return scope === null || scope === undefined ? run(NO_SPAN) : inScope(scope, () => run(scope.span));
}

/** Source: OpenTelemetry, "Semantic conventions for HTTP spans" 1.x. Neither query nor body, which may hold anything. */
function spanOf(request: FastifyRequest): Span {
  const route = request.routeOptions.url;
  if (route !== undefined && UNTRACED.has(route)) return NO_SPAN;
  const name = route === undefined ? request.method : `${request.method} ${route}`;
  const span = startSpan(name, { kind: "server" }, traceContextOf(request.headers));
  if (span.recording) {
    span.set({
      "http.request.method": request.method,
      "http.route": route,
      "url.path": route === undefined ? undefined : request.url.split("?")[0],
      "url.scheme": request.protocol,
      "network.protocol.version": request.raw.httpVersion,
      "user_agent.original": request.headers["user-agent"]?.slice(0, 200),
      "atelier.request_id": request.id,
    });
  }
  return span;
}

/** Its last byte left, or its caller did. */
export function endRequestSpan({ scope }: FastifyRequest, { raw }: FastifyReply, status: number): void {
  if (scope === null || !scope.span.recording) return;
  const { span, fields } = scope;
  span.set({
    "http.response.status_code": status,
    "atelier.tenant": fields.tenant,
    "atelier.model": fields["model"],
    "atelier.cache": fields["cache"],
    "http.response.complete": raw.writableFinished,
  });
  if (status === 499) span.set({ "error.type": "CANCELLED" });
  span.end();
}
