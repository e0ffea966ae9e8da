import type { Server as TlsServer } from "node:tls";
import type { Clock } from "@atelier/core";
import { InvariantError } from "@atelier/core";
import type { TlsFiles } from "@atelier/rpc";
import type { Logger } from "@atelier/telemetry";
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
import type { BackgroundGenerations } from "./background/background-generations.ts";
import type { ExactCache } from "./cache/exact-cache.ts";
import { wordAsA1111 } from "./dialects/a1111-errors.ts";
import type { Fleet } from "./fleet/fleet.ts";
import type { Generations } from "./generations/generations.ts";
import { type Authenticator, authenticateAll } from "./http/authentication.ts";
import { answerBrokenHttp } from "./http/broken-http.ts";
import { allowOrigins } from "./http/cross-origin.ts";
import { type ErrorReply, errorReply, readableError } from "./http/error-reply.ts";
import { heedIdempotencyKeys } from "./http/idempotency.ts";
import type { IdempotencyKeys } from "./http/idempotency-keys.ts";
import { acceptJsonOnly } from "./http/json-body.ts";
import { refuseUnknownRoutes } from "./http/not-found.ts";
import { collectOpenApi, openApiRoute } from "./http/openapi.ts";
import { REQUEST_ID_HEADER, requestIdOf } from "./http/request-id.ts";
import { setSecurityHeaders } from "./http/security-headers.ts";
import { strictValidator } from "./http/validation.ts";
import type { InFlight } from "./in-flight.ts";
import type { GatewayMetrics } from "./metrics.ts";
import type { ModelAliases } from "./model-aliases.ts";
import { a1111Routes } from "./routes/a1111.ts";
import { adminCacheRoutes } from "./routes/admin-cache.ts";
import { adminKeysRoutes } from "./routes/admin-keys.ts";
import { adminTenantsRoutes } from "./routes/admin-tenants.ts";
import { generateRoute } from "./routes/generate.ts";
import { type GenerationsRouteOptions, generationsRoute } from "./routes/generations.ts";
import { generationsRecordsRoutes } from "./routes/generations-records.ts";
import { modelsRoutes } from "./routes/models.ts";
import { type OpenAiImagesOptions, openAiImagesRoutes } from "./routes/openai-images.ts";
import { operationsRoutes } from "./routes/operations.ts";
import { usageRoute } from "./routes/usage.ts";
import type { Estimator } from "./tenants/estimate.ts";
import type { Tenancy } from "./tenants/tenancy.ts";

export type GatewayApp = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression,
  RawReplyDefaultExpression,
  FastifyBaseLogger,
  ZodTypeProvider
>;

export interface AppOptions {
  readonly fleet: Fleet;
  readonly aliases: ModelAliases;
  readonly generations: Generations;
  readonly authenticator: Authenticator;
  readonly tenancy: Tenancy;
  /** Undefined where none is kept. */
  readonly cache: ExactCache | undefined;
  readonly estimator: Estimator;
  readonly idempotencyKeys: IdempotencyKeys;
  readonly background: BackgroundGenerations;
  readonly inFlight: InFlight;
  readonly metrics: GatewayMetrics;
  readonly clock: Clock;
  readonly log: Logger;
  readonly requestTimeoutMs: number;
  readonly bodyMaxBytes: number;
  readonly receiveTimeoutMs: number;
  readonly connectionsMax: number;
  /** Absent: plain HTTP. */
  readonly tlsFiles?: TlsFiles | undefined;
  readonly corsOrigins: readonly string[];
  /** Told of a broken invariant after its caller was answered; a process stops on it. */
  readonly onBug: (bug: InvariantError) => void;
}

/** Headers are small: whoever needs longer for them means no request. */
const HEADERS_TIMEOUT_MS = 10_000;

/** The HTTP side of the gateway, not listening yet. */
export async function buildApp(options: AppOptions): Promise<GatewayApp> {
  const app: GatewayApp = Fastify({
    ...serverOptions(options),
    loggerInstance: options.log as FastifyBaseLogger,
    logController: new LogController({ disableRequestLogging: true }), // `observe` writes one line a request
    bodyLimit: options.bodyMaxBytes,
    requestTimeout: options.receiveTimeoutMs,
    // Nothing is silent for longer but a caller that does not take its answer.
    connectionTimeout: options.requestTimeoutMs + options.receiveTimeoutMs,
    genReqId: (raw) => requestIdOf(raw.headers),
    // While it stops, fastify's own 503 would not have our error body; InFlight refuses instead.
    return503OnClosing: false,
    clientErrorHandler: answerBrokenHttp,
    frameworkErrors: (error, request, reply) => void sendError(error, request, reply, options),
  } as FastifyServerOptions).withTypeProvider<ZodTypeProvider>();
  keepToLimits(app, options);

  app.setValidatorCompiler(strictValidator);
  app.setSerializerCompiler(serializerCompiler);
  acceptJsonOnly(app);
  refuseUnknownRoutes(app);
  app.setErrorHandler((error, request, reply) => sendError(error, request, reply, options));
  app.addHook("onRequest", async (request, reply) => {
    reply.header(REQUEST_ID_HEADER, request.id);
    observe(request, reply, options);
  });
  setSecurityHeaders(app, { https: options.tlsFiles !== undefined });
  await allowOrigins(app, options.corsOrigins); // before the authenticator: browsers ask without a key
  app.addHook("onSend", async (_request, reply) => {
    // A kept-alive connection would hold up the stop until its caller drops it.
    if (options.inFlight.stopping) reply.header("connection", "close");
  });

  // Generations that no connection waits for are in flight as well; a stop waits for them as for those.
  app.addHook("preClose", async () => options.background.stopWaiting());
  app.addHook("onClose", () => options.background.idle());

  authenticateAll(app, options.authenticator);
  heedIdempotencyKeys(app, { ...options, keys: options.idempotencyKeys });

  await collectOpenApi(app);
  openApiRoute(app);
  const generationRoutes: GenerationsRouteOptions & OpenAiImagesOptions = {
    ...options,
    noteFailure: (thrown, request, reply) => noteFailure(thrown, request, reply, options),
  };
  generateRoute(app, generationRoutes);
  generationsRoute(app, generationRoutes);
  generationsRecordsRoutes(app, options);
  openAiImagesRoutes(app, generationRoutes);
  a1111Routes(app, options);
  modelsRoutes(app, options);
  usageRoute(app, { ...options, ...options.tenancy });
  adminCacheRoutes(app, options);
  adminKeysRoutes(app, options.tenancy);
  adminTenantsRoutes(app, options.tenancy);
  operationsRoutes(app, { ...options, registry: options.metrics.registry });
  return app;
}

/**
 * Slow callers are looked for each second at most (Node's own default is half a minute): until then one holds a socket
 * and nothing else.
 */
function serverOptions({ receiveTimeoutMs, tlsFiles }: AppOptions): object {
  const limits = {
    headersTimeout: Math.min(HEADERS_TIMEOUT_MS, receiveTimeoutMs),
    connectionsCheckingInterval: Math.min(1_000, receiveTimeoutMs / 4),
  };
  return tlsFiles === undefined ? { http: limits } : { https: { ...limits, ...tlsFiles.identity } };
}

function keepToLimits(app: GatewayApp, { connectionsMax, tlsFiles }: AppOptions): void {
  app.server.maxConnections = connectionsMax;
  if (tlsFiles === undefined) return;
  // Whoever is connected stays so: only new handshakes see the new certificate.
  const end = tlsFiles.onChange((identity) => (app.server as unknown as TlsServer).setSecureContext(identity));
  app.addHook("onClose", async () => end());
}

/** One log line and one count for each request, when its last byte left or its caller did. */
function observe(request: FastifyRequest, reply: FastifyReply, { metrics, log, clock }: AppOptions): void {
  const startMs = clock.nowMs();
  reply.raw.once("close", () => {
    const route = request.routeOptions.url ?? "unknown";
    const status = reply.raw.writableFinished ? reply.statusCode : 499;
    const durationMs = clock.nowMs() - startMs;
    metrics.requests.inc({ route, method: request.method, status });
    metrics.requestSeconds.observe({ route }, durationMs / 1000);
    log.info({ request_id: request.id, method: request.method, route, status, duration_ms: durationMs }, "request");
  });
}

function sendError(thrown: unknown, request: FastifyRequest, reply: FastifyReply, options: AppOptions): FastifyReply {
  const { status, headers, body } = noteFailure(thrown, request, reply, options);
  return reply
    .code(status)
    .headers(headers)
    .header(REQUEST_ID_HEADER, request.id)
    .type("application/json; charset=utf-8")
    .send(body);
}

/** As the route's dialect does; of a route that is not there, its path tells the dialect. */
function wordFailureOf({ routeOptions, url }: FastifyRequest) {
  return routeOptions.config?.wordFailure ?? (url.startsWith("/sdapi/") ? wordAsA1111 : undefined);
}

/** Logs and counts a failure by its own status, even where the caller was long told 200, as in a stream of events. */
function noteFailure(thrown: unknown, request: FastifyRequest, reply: FastifyReply, options: AppOptions): ErrorReply {
  const error = readableError(thrown, { ...options, contentType: request.headers["content-type"] });
  const ours = errorReply(error, request.id);
  const answer = wordFailureOf(request)?.(error, ours) ?? ours;
  const { status } = answer;
  reply.raw.statusCode = status; // what `observe` reads; on the wire it changes nothing once the headers are out
  const level = error.code === "INTERNAL" ? "error" : status >= 500 ? "warn" : "debug";
  options.log[level]({ request_id: request.id, code: error.code, err: error }, "request failed");
  if (thrown instanceof InvariantError) {
    if (reply.raw.closed) options.onBug(thrown);
    else reply.raw.once("close", () => options.onBug(thrown));
  }
  return answer;
}
