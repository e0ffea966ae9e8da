import type { SecureContextOptions } from "node:tls";
import type { Clock } from "@atelier/core";
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
  LogController,
  type RawReplyDefaultExpression,
  type RawRequestDefaultExpression,
  type RawServerDefault,
} from "fastify";
import { serializerCompiler, type ZodTypeProvider } from "fastify-type-provider-zod";
import { answerBrokenHttp } from "./broken-http.ts";
import { type FailureOptions, sendFailure } from "./failed-request.ts";
import { refuseUnknownRoutes } from "./not-found.ts";
import { endSlowBodies } from "./receive-timeout.ts";
import { requestIdHeaders, requestIdOf } from "./request-id.ts";
import { endRequestSpan, scopeRequests, UNTRACED, withinRequest } from "./request-scope.ts";
import { setSecurityHeaders } from "./security-headers.ts";
import { strictValidator } from "./validation.ts";

export type HttpApp = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  ZodTypeProvider
>;

export interface ServerOptions extends FailureOptions {
  readonly clock: Clock;
  /** How long a caller may take to send its headers and body. */
  readonly receiveTimeoutMs: number;
  /** How long a connection may be silent in both directions. */
  readonly silenceMaxMs: number;
  /** More are closed as they come. */
  readonly connectionsMax: number;
  /** Absent: plain HTTP. */
  readonly identity?: SecureContextOptions | undefined;
  /** Of each request, when its last byte left or its caller did. */
  readonly onEnd: (ended: EndedRequest, request: FastifyRequest) => void;
}

export interface EndedRequest {
  readonly route: string;
  readonly method: string;
  /** 499 where the caller left. */
  readonly status: number;
  readonly durationMs: number;
}

/** Headers are small: whoever needs longer for them means no request. */
const HEADERS_TIMEOUT_MS = 10_000;

/**
 * A server without routes, not listening yet: it checks strictly, answers failures in the one form, names every request,
 * keeps to its limits and says what browsers are to be told.
 */
export function buildServer(options: ServerOptions): HttpApp {
  const { clock, receiveTimeoutMs, identity } = options;
  const app: HttpApp = Fastify({
    ...listenerOptions(options),
    loggerInstance: options.log,
    logController: new LogController({ disableRequestLogging: true }), // `observe` writes one line a request
    bodyLimit: options.bodyMaxBytes,
    requestTimeout: 0, // endSlowBodies knows which bodies may take longer
    connectionTimeout: options.silenceMaxMs,
    genReqId: (raw) => requestIdOf(raw.headers),
    // While it stops, fastify's own 503 would not have our error body.
    return503OnClosing: false,
    clientErrorHandler: answerBrokenHttp,
    frameworkErrors: (error, request, reply) => void sendFailure(error, request, reply, options),
  } as FastifyServerOptions).withTypeProvider<ZodTypeProvider>();
  app.server.maxConnections = options.connectionsMax;

  app.setValidatorCompiler(strictValidator);
  app.setSerializerCompiler(serializerCompiler);
  refuseUnknownRoutes(app);
  app.setErrorHandler((error, request, reply) => sendFailure(error, request, reply, options));
  scopeRequests(app);
  app.addHook("onRequest", async (request, reply) => {
    reply.headers(requestIdHeaders(request.id));
    observe(request, reply, options);
  });
  endSlowBodies(app, { clock, timeoutMs: receiveTimeoutMs });
  setSecurityHeaders(app, { https: identity !== undefined });
  return app;
}

/**
 * Slow callers are looked for each second at most (Node's own default is half a minute): until then one holds a socket
 * and nothing else.
 */
function listenerOptions({ receiveTimeoutMs, identity }: ServerOptions): object {
  const limits = {
    headersTimeout: Math.min(HEADERS_TIMEOUT_MS, receiveTimeoutMs),
    connectionsCheckingInterval: Math.min(1_000, receiveTimeoutMs / 4),
  };
  return identity === undefined ? { http: limits } : { https: { ...limits, ...identity } };
}

/** One log line for each request. */
function observe(request: FastifyRequest, reply: FastifyReply, { onEnd, log, clock }: ServerOptions): void {
  const startMs = clock.nowMs();
  reply.raw.once("close", () => {
    const route = request.routeOptions.url ?? "unknown";
    const { method } = request;
    const status = reply.raw.writableFinished ? reply.statusCode : 499;
    const durationMs = clock.nowMs() - startMs;
    withinRequest(request, () => {
      onEnd({ route, method, status, durationMs }, request);
      // Probes come every few seconds, and say nothing as long as they are answered well.
      const level = UNTRACED.has(route) && status < 400 ? "debug" : "info";
      log[level]({ method, route, status, duration_ms: durationMs }, "request");
    });
    endRequestSpan(request, reply, status);
  });
}
