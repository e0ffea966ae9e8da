import { createHash, timingSafeEqual } from "node:crypto";
import { type Clock, type InvariantError, ServingError } from "@atelier/core";
import { buildServer, type HttpApp } from "@atelier/http";
import type { Logger } from "@atelier/telemetry";
import type { FastifyRequest } from "fastify";
import type { JobIntake } from "../intake/index.ts";
import type { JobsMetrics } from "../metrics.ts";
import type { JobCaller, Jobs } from "../ports.ts";
import type { Webhooks } from "../webhooks/webhooks.ts";
import { readCaller } from "./caller-header.ts";
import { operationsRoutes } from "./operations-routes.ts";
import { webhookRoutes } from "./webhook-routes.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** Who asks, as the gateway said; undefined on routes that anybody may ask. */
    jobCaller: JobCaller | undefined;
  }
}

export interface AppParts {
  readonly clock: Clock;
  readonly log: Logger;
  readonly onBug: (bug: InvariantError) => void;
  readonly metrics: JobsMetrics;
  readonly jobs: Jobs;
  readonly intake: JobIntake;
  readonly webhooks: Webhooks;
  /** What gateways say to be let in; undefined: nothing, and only loopback is listened on. */
  readonly internalToken: string | undefined;
  /** Why it does not serve now; undefined: it does. */
  readonly trouble: () => string | undefined;
}

/** JSON bodies; sheets are streams with a limit of their own. */
const BODY_BYTES_MAX = 32 * 1024 * 1024;
/** A gateway reads a caller's body as slowly as that sends it. */
const RECEIVE_MS = 600_000;
const CONNECTIONS_MAX = 10_000;

/** The service's API as gateways pass it on. Not listening yet. */
export function buildApp(parts: AppParts): HttpApp {
  const { metrics, internalToken } = parts;
  const app = buildServer({
    ...parts,
    bodyMaxBytes: BODY_BYTES_MAX,
    receiveTimeoutMs: RECEIVE_MS,
    silenceMaxMs: 0,
    connectionsMax: CONNECTIONS_MAX,
    onEnd: ({ route, method, status, durationMs }) => {
      metrics.requests.inc({ route, method, status });
      metrics.requestSeconds.observe({ route }, durationMs / 1_000);
    },
  });
  app.decorateRequest("jobCaller", undefined);
  app.addHook("onRequest", async (request) => {
    if (!request.url.startsWith("/v1/")) return;
    checkToken(request, internalToken);
    request.jobCaller = readCaller(request.headers);
  });
  operationsRoutes(app, parts);
  webhookRoutes(app, { ...parts, callerOf });
  return app;
}

/** Of a route under /v1. */
export function callerOf({ jobCaller }: FastifyRequest): JobCaller {
  if (jobCaller === undefined) throw new ServingError("UNAUTHENTICATED", "the gateway did not say who asks");
  return jobCaller;
}

/** Compares digests, in a time that does not tell how much of it was right. */
function checkToken({ headers }: FastifyRequest, token: string | undefined): void {
  if (token === undefined) return;
  if (timingSafeEqual(digestOf(headers.authorization ?? ""), digestOf(`Bearer ${token}`))) return;
  throw new ServingError("UNAUTHENTICATED", "this service answers gateways only: ask one of those");
}

const digestOf = (text: string) => createHash("sha256").update(text).digest();
