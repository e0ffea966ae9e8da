import type { Clock, InvariantError } from "@atelier/core";
import {
  acceptJsonOnly,
  buildServer,
  checkInternalCaller,
  collectOpenApi,
  type HttpApp,
  openApiRoute,
} from "@atelier/http";
import type { JobQueue } from "@atelier/job-queue";
import type { ObjectStore } from "@atelier/object-store";
import { addLogFields, type Logger } from "@atelier/telemetry";
import type { JobIntake } from "../intake/index.ts";
import type { JobsMetrics } from "../metrics.ts";
import type { ItemSource, Jobs } from "../ports.ts";
import type { Manifest } from "../results/manifest.ts";
import type { PictureBook } from "../results/picture-book.ts";
import type { Webhooks } from "../webhooks/webhooks.ts";
import { readCaller } from "./caller-header.ts";
import { callerOf } from "./caller-of.ts";
import { deadLettersRoutes } from "./dead-letters-routes.ts";
import { eventsRoute } from "./events-route.ts";
import { itemsRoutes } from "./items-routes.ts";
import { jobsRoutes } from "./jobs-routes.ts";
import { operationsRoutes } from "./operations-routes.ts";
import { presetsRoutes } from "./presets-routes.ts";
import { resultsRoutes } from "./results-routes.ts";
import { submissionRoutes } from "./submission-routes.ts";
import { webhookRoutes } from "./webhook-routes.ts";

export interface AppParts {
  readonly clock: Clock;
  readonly log: Logger;
  readonly onBug: (bug: InvariantError) => void;
  readonly metrics: JobsMetrics;
  readonly jobs: Jobs;
  readonly intake: JobIntake;
  readonly items: ItemSource;
  readonly objects: Pick<ObjectStore, "get" | "link">;
  readonly queue: Pick<JobQueue, "work" | "events">;
  readonly manifest: Manifest;
  readonly book: PictureBook;
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
export async function buildApp(parts: AppParts): Promise<HttpApp> {
  const { metrics, internalToken, queue, intake } = parts;
  const app = buildServer({
    ...parts,
    bodyMaxBytes: BODY_BYTES_MAX,
    receiveTimeoutMs: RECEIVE_MS,
    silenceMaxMs: 0,
    connectionsMax: CONNECTIONS_MAX,
    onEnd: metrics.requestEnded,
  });
  acceptJsonOnly(app);
  app.decorateRequest("jobCaller", undefined);
  app.addHook("onRequest", async (request) => {
    if (!request.url.startsWith("/v1/")) return;
    checkInternalCaller(request, internalToken);
    request.jobCaller = readCaller(request.headers);
    addLogFields({ tenant: request.jobCaller.tenant });
  });
  operationsRoutes(app, parts);
  await collectOpenApi(app, "Makes pictures in bulk, from sheets.");
  openApiRoute(app);
  submissionRoutes(app, parts);
  jobsRoutes(app, parts);
  itemsRoutes(app, parts);
  eventsRoute(app, { ...parts, events: queue.events });
  resultsRoutes(app, parts);
  deadLettersRoutes(app, { ...parts, work: queue.work });
  presetsRoutes(app, intake);
  webhookRoutes(app, { ...parts, callerOf });
  return app;
}
