import { ServingError } from "@atelier/core";
import { errorResponses, sentAsBytes } from "@atelier/http";
import { Exposition, type Registry } from "@atelier/telemetry";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { notReadyMessage } from "../fleet/not-ready.ts";
import type { InFlight } from "../in-flight.ts";

export interface OperationsOptions {
  readonly fleet: Fleet;
  readonly inFlight: InFlight;
  readonly registry: Registry;
}

/** What an orchestrator, a Prometheus or a person on call asks: /healthz, /readyz, /metrics. */
export function operationsRoutes(app: GatewayApp, { fleet, inFlight, registry }: OperationsOptions): void {
  const health = {
    operationId: "health",
    summary: "The process is alive",
    response: { 200: z.object({ status: z.literal("ok") }).meta({ description: "It is." }) },
  };
  app.get("/healthz", { schema: health, config: { access: "public" } }, async () => ({ status: "ok" as const }));

  const readiness = {
    operationId: "readiness",
    summary: "Requests sent now would find a worker",
    response: { 200: readyReply, ...errorResponses(503) },
  };
  app.get("/readyz", { schema: readiness, config: { access: "public" } }, async () => {
    inFlight.checkOpen();
    const views = fleet.views();
    const workersReady = views.filter((worker) => worker.ready).length;
    if (workersReady === 0) throw new ServingError("NO_WORKER", notReadyMessage(views));
    return { ready: true as const, workers: views.length, workers_ready: workersReady };
  });

  const metrics = {
    operationId: "metrics",
    summary: "Metrics for Prometheus",
    description: "In the text format, or as OpenMetrics for whoever accepts application/openmetrics-text.",
    response: {
      200: {
        description: "The metrics.",
        content: {
          "text/plain": { schema: sentAsBytes },
          "application/openmetrics-text": { schema: sentAsBytes },
        },
      },
    },
  };
  const exposition = new Exposition(registry);
  app.get("/metrics", { schema: metrics, config: { access: "public" } }, async (request, reply) => {
    const { contentType, body } = await exposition.answer(request.headers.accept);
    return reply.type(contentType).header("vary", "accept").send(Buffer.from(body));
  });
}

const readyReply = z
  .object({ ready: z.literal(true), workers: z.int(), workers_ready: z.int() })
  .meta({ description: "At least one worker takes requests." });
