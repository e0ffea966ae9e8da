import { ServingError } from "@atelier/core";
import type { HttpApp } from "@atelier/http";
import { Exposition } from "@atelier/telemetry";
import type { JobsMetrics } from "../metrics.ts";

export interface OperationsParts {
  readonly metrics: JobsMetrics;
  /** Why it does not serve now; undefined: it does. */
  readonly trouble: () => string | undefined;
}

/** What an orchestrator, a Prometheus or a person on call asks: /healthz, /readyz, /metrics. */
export function operationsRoutes(app: HttpApp, { metrics: { registry }, trouble }: OperationsParts): void {
  app.get("/healthz", async () => ({ status: "ok" }));

  app.get("/readyz", async () => {
    const why = trouble();
    if (why !== undefined) throw new ServingError("STORAGE_UNAVAILABLE", why);
    return { ready: true };
  });

  const exposition = new Exposition(registry);
  app.get("/metrics", async (request, reply) => {
    const { contentType, body } = await exposition.answer(request.headers.accept);
    return reply.type(contentType).header("vary", "accept").send(body);
  });
}
