import type { Server as TlsServer } from "node:tls";
import type { Clock, InvariantError } from "@atelier/core";
import {
  acceptJsonOnly,
  buildServer,
  collectOpenApi,
  type HttpApp,
  noteFailedRequest,
  openApiRoute,
  type ServerOptions,
} from "@atelier/http";
import type { TlsFiles } from "@atelier/rpc";
import type { Logger } from "@atelier/telemetry";
import type { FastifyBaseLogger } from "fastify";
import type { BackgroundGenerations } from "./background/background-generations.ts";
import type { ExactCache } from "./cache/exact-cache.ts";
import type { Caller } from "./caller.ts";
import { wordAsA1111 } from "./dialects/a1111-errors.ts";
import type { Fleet } from "./fleet/fleet.ts";
import type { Generations } from "./generations/generations.ts";
import { type Authenticator, authenticateAll } from "./http/authentication.ts";
import { allowOrigins } from "./http/cross-origin.ts";
import { heedIdempotencyKeys } from "./http/idempotency.ts";
import type { IdempotencyKeys } from "./http/idempotency-keys.ts";
import type { CompleteRequest } from "./image-request.ts";
import type { InFlight } from "./in-flight.ts";
import { internalRoutes } from "./jobs/internal-routes.ts";
import { JobsOpenApi } from "./jobs/jobs-openapi.ts";
import type { JobsUpstream } from "./jobs/jobs-upstream.ts";
import { streamJobs } from "./jobs/stream-jobs.ts";
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

export type GatewayApp = HttpApp;

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
  /** Undefined where no jobs service is configured. */
  readonly jobs: JobsUpstream | undefined;
  readonly internalToken: string | undefined;
  /** Device milliseconds that a request would take; 0 where nobody knows. */
  readonly predictMs: (asked: CompleteRequest, caller: Caller) => number;
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

/** The HTTP side of the gateway, not listening yet. */
export async function buildApp(options: AppOptions): Promise<GatewayApp> {
  const { metrics, tlsFiles } = options;
  const server: ServerOptions = {
    ...options,
    log: options.log as FastifyBaseLogger,
    // Nothing is silent for longer but a caller that does not take its answer.
    silenceMaxMs: options.requestTimeoutMs + options.receiveTimeoutMs,
    identity: tlsFiles?.identity,
    onEnd: (ended, { caller, servedAs }) => metrics.requestEnded({ ...ended, caller, servedAs }),
    // Of a route that is not there, its path tells the dialect.
    wordFailure: (error, answer, { url }) => (url.startsWith("/sdapi/") ? wordAsA1111(error, answer) : answer),
  };
  const app: GatewayApp = buildServer(server);
  if (tlsFiles !== undefined) renewIdentity(app, tlsFiles);
  acceptJsonOnly(app);
  app.decorateRequest("servedAs", null);
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

  await collectOpenApi(app, "Makes pictures from prompts.");
  const jobsDocument = options.jobs && new JobsOpenApi(options.jobs);
  openApiRoute(app, jobsDocument && ((document) => jobsDocument.addTo(document)));
  const generationRoutes: GenerationsRouteOptions & OpenAiImagesOptions = {
    ...options,
    noteFailure: (thrown, request, reply) => noteFailedRequest(thrown, request, reply, server),
  };
  generateRoute(app, generationRoutes);
  generationsRoute(app, generationRoutes);
  generationsRecordsRoutes(app, options);
  openAiImagesRoutes(app, generationRoutes);
  a1111Routes(app, options);
  modelsRoutes(app, options);
  streamJobs(app, { ...options, lost: (caller) => options.tenancy.authenticator.lost(caller) });
  internalRoutes(app, { ...options, ...options.tenancy });
  usageRoute(app, { ...options, ...options.tenancy });
  adminCacheRoutes(app, options);
  adminKeysRoutes(app, options.tenancy);
  adminTenantsRoutes(app, options.tenancy);
  operationsRoutes(app, { ...options, registry: options.metrics.registry });
  return app;
}

/** Whoever is connected stays so: only new handshakes see the new certificate. */
function renewIdentity(app: GatewayApp, tlsFiles: TlsFiles): void {
  const end = tlsFiles.onChange((identity) => (app.server as unknown as TlsServer).setSecureContext(identity));
  app.addHook("onClose", async () => end());
}
