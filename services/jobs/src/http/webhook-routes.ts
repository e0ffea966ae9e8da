import { ServingError } from "@atelier/core";
import { errorResponses, type HttpApp } from "@atelier/http";
import type { FastifyRequest } from "fastify";
import { z } from "zod";
import type { JobCaller, Jobs } from "../ports.ts";
import { DELIVERY_STATUSES, type Delivery } from "../webhooks/delivery.ts";
import { WEBHOOK_EVENTS } from "../webhooks/hook-url.ts";
import type { SigningSecret } from "../webhooks/signing-secrets.ts";
import type { Webhooks } from "../webhooks/webhooks.ts";

export interface WebhookRouteParts {
  readonly webhooks: Webhooks;
  readonly jobs: Jobs;
  readonly callerOf: (request: FastifyRequest) => JobCaller;
}

const NO_JOB = [404, "There is no such job, or it is another tenant's."] as const;
const DAY_S = 24 * 3_600;
const GRACE_MAX_S = 30 * DAY_S;

/** A job's webhook calls, and the secret that they are signed with. */
export function webhookRoutes(app: HttpApp, { webhooks, jobs, callerOf }: WebhookRouteParts): void {
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

  app.get("/v1/webhook-secret", { schema: secretSchema }, async (request, reply) => {
    reply.header("cache-control", "no-store");
    return secretToJson(await webhooks.secrets.of(callerOf(request).tenant));
  });

  app.post("/v1/webhook-secret/rotate", { schema: rotateSchema }, async (request, reply) => {
    reply.header("cache-control", "no-store");
    const graceMs = (request.body?.grace_seconds ?? DAY_S) * 1_000;
    return secretToJson(await webhooks.secrets.rotate(callerOf(request).tenant, { graceMs }));
  });
}

const moment = z.iso.datetime();
const deliveryReply = z
  .object({
    id: z.string().describe("Also the call's webhook-id, the same at every attempt."),
    job_id: z.string(),
    event: z.enum(WEBHOOK_EVENTS),
    url: z.string(),
    status: z
      .enum(DELIVERY_STATUSES)
      .describe("failed: given up after a day; stopped: the receiver answered 410, or the job is gone."),
    created_at: moment,
    next_attempt_at: moment.nullable(),
    attempt_count: z.int(),
    attempts: z
      .array(
        z.object({
          at: moment,
          latency_ms: z.int(),
          status: z.int().nullable().describe("Of the answer; null where none came."),
          error: z.string().nullable().describe("Why it does not count; null where it does."),
          excerpt: z.string().describe("How the answer began, 1 KiB at most."),
        }),
      )
      .describe("The newest twenty."),
    body: z.unknown().describe("As it is sent."),
  })
  .meta({ id: "WebhookDelivery", description: "A call to a job's receiver. Progress calls are not kept." });

const secretReply = z
  .object({
    secret: z.string().describe("whsec_ and 32 bytes in base64, as the Standard Webhooks libraries take it."),
    created_at: moment,
    previous_until: moment.nullable().describe("Until when the secret before signs beside it."),
  })
  .meta({ id: "WebhookSecret" });

const tags = ["webhooks"];

const listSchema = {
  tags,
  operationId: "listWebhookDeliveries",
  summary: "A job's webhook calls, newest first, with what came of them",
  params: z.strictObject({ id: z.string() }),
  querystring: z.strictObject({
    status: z.enum(DELIVERY_STATUSES).optional(),
    limit: z.coerce.number().int().min(1).max(1_000).default(100),
    after: z.string().optional().describe("The last of the page before."),
  }),
  response: { 200: z.object({ deliveries: z.array(deliveryReply) }), ...errorResponses(400, NO_JOB, 503) },
};

const redeliverSchema = {
  tags,
  operationId: "redeliverWebhook",
  summary: "Makes a call again, whatever came of it",
  params: z.strictObject({ id: z.string() }),
  response: { 202: deliveryReply, ...errorResponses([404, "There is no such delivery any more."], 503) },
};

const secretSchema = {
  tags,
  operationId: "getWebhookSecret",
  summary: "What the tenant's webhook calls are signed with",
  response: { 200: secretReply, ...errorResponses(503) },
};

const rotateSchema = {
  tags,
  operationId: "rotateWebhookSecret",
  summary: "A new secret; the one before signs beside it for a while",
  body: z
    .strictObject({
      grace_seconds: z.number().int().min(0).max(GRACE_MAX_S).optional().describe("How long that is; a day."),
    })
    .nullish()
    .meta({ id: "WebhookSecretRotation" }),
  response: { 200: secretReply, ...errorResponses(400, 409, 503) },
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
