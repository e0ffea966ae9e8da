import type { IncomingMessage, ServerResponse } from "node:http";
import { ServingError } from "@atelier/core";
import type { FastifyBaseLogger, FastifyInstance, FastifyRequest, RawServerDefault } from "fastify";
import type { ZodTypeProvider } from "fastify-type-provider-zod";
import { z } from "zod";
import type { JobCaller, Jobs } from "../ports.ts";
import { DELIVERY_STATUSES, type Delivery } from "../webhooks/delivery.ts";
import type { SigningSecret } from "../webhooks/signing-secrets.ts";
import type { Webhooks } from "../webhooks/webhooks.ts";

type App = FastifyInstance<RawServerDefault, IncomingMessage, ServerResponse, FastifyBaseLogger, ZodTypeProvider>;

export interface WebhookRouteParts {
  readonly webhooks: Webhooks;
  readonly jobs: Jobs;
  readonly callerOf: (request: FastifyRequest) => JobCaller;
}

const DAY_S = 24 * 3_600;
const GRACE_MAX_S = 30 * DAY_S;

/** A job's webhook calls, and the secret that they are signed with. */
export function webhookRoutes(app: App, { webhooks, jobs, callerOf }: WebhookRouteParts): void {
  app.get("/v1/jobs/:id/webhook-deliveries", { schema: listSchema }, async (request) => {
    const { id } = request.params;
    const tenant = jobs.get(id)?.record.tenant;
    if (tenant === undefined || !mayRead(callerOf(request), tenant)) throw noJob(id);
    const { status, limit, after } = request.query;
    const filter = { max: limit, ...(status !== undefined && { status }), ...(after !== undefined && { after }) };
    return { deliveries: (await webhooks.deliveries(id, filter)).map(toJson) };
  });

  app.post("/v1/webhook-deliveries/:id/redeliver", { schema: redeliverSchema }, async (request, reply) => {
    const { id } = request.params;
    const delivery = await webhooks.delivery(id);
    if (delivery === undefined || !mayRead(callerOf(request), delivery.tenant)) {
      throw new ServingError("NOT_FOUND", `there is no webhook delivery ${id}`, { field: "id" });
    }
    return reply.code(202).send(toJson(await webhooks.redeliver(delivery)));
  });

  app.get("/v1/webhook-secret", async (request, reply) => {
    reply.header("cache-control", "no-store");
    return secretToJson(await webhooks.secrets.of(callerOf(request).tenant));
  });

  app.post("/v1/webhook-secret/rotate", { schema: rotateSchema }, async (request, reply) => {
    reply.header("cache-control", "no-store");
    const graceMs = (request.body?.grace_seconds ?? DAY_S) * 1_000;
    return secretToJson(await webhooks.secrets.rotate(callerOf(request).tenant, { graceMs }));
  });
}

const listSchema = {
  params: z.strictObject({ id: z.string() }),
  querystring: z.strictObject({
    status: z.enum(DELIVERY_STATUSES).optional(),
    limit: z.coerce.number().int().min(1).max(1_000).default(100),
    after: z.string().optional(),
  }),
};
const redeliverSchema = { params: z.strictObject({ id: z.string() }) };
const rotateSchema = {
  body: z.strictObject({ grace_seconds: z.number().int().min(0).max(GRACE_MAX_S).optional() }).nullish(),
};

const mayRead = (caller: JobCaller, tenant: string) => caller.tenant === tenant || caller.role !== "user";

const noJob = (id: string) => new ServingError("NOT_FOUND", `there is no job ${id}`, { field: "id" });

function toJson({ id, jobId, event, url, status, createdAtMs, nextAtMs, attemptCount, attempts, body }: Delivery) {
  return {
    id,
    job_id: jobId,
    event,
    url,
    status,
    created_at: momentOf(createdAtMs),
    next_attempt_at: nextAtMs === null ? null : momentOf(nextAtMs),
    attempt_count: attemptCount,
    attempts: attempts.map(({ atMs, latencyMs, status: answered, error, excerpt }) => ({
      at: momentOf(atMs),
      latency_ms: Math.round(latencyMs),
      status: answered,
      error,
      excerpt,
    })),
    body: JSON.parse(body) as unknown,
  };
}

function secretToJson({ secret, createdAtMs, previous }: SigningSecret) {
  return {
    secret,
    created_at: momentOf(createdAtMs),
    previous_until: previous === null ? null : momentOf(previous.untilMs),
  };
}

const momentOf = (atMs: number) => new Date(atMs).toISOString();
