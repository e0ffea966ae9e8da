import { systemClock } from "@atelier/core";
import { buildServer, type HttpApp } from "@atelier/http";
import { createLogger } from "@atelier/telemetry";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { JobCaller, Jobs } from "../ports.ts";
import type { Delivery } from "../webhooks/delivery.ts";
import type { Webhooks } from "../webhooks/webhooks.ts";
import { webhookRoutes } from "./webhook-routes.ts";

describe("the routes of webhooks", () => {
  it("list a job's calls with their attempts, for its tenant and for operators", async () => {
    for (const caller of [SHOP, { ...SHOP, tenant: "ops", role: "operator" as const }]) {
      const reply = await as(caller, "GET", "/v1/jobs/job_a/webhook-deliveries?status=failed&limit=5&after=msg_b");
      expect(reply.status).toBe(200);
      expect(reply.body).toEqual({
        deliveries: [
          {
            id: "msg_a",
            job_id: "job_a",
            event: "job.done",
            url: "https://shop.example/hook",
            status: "failed",
            created_at: "2026-11-23T09:00:00.000Z",
            next_attempt_at: null,
            attempt_count: 1,
            attempts: [
              { at: "2026-11-23T09:00:00.000Z", latency_ms: 12, status: 500, error: "it answered 500", excerpt: "no" },
            ],
            body: { type: "job.done" },
          },
        ],
      });
    }
    expect(asked[0]).toEqual(["job_a", { max: 5, status: "failed", after: "msg_b" }]);
  });

  it("make a call again", async () => {
    const reply = await as(SHOP, "POST", "/v1/webhook-deliveries/msg_a/redeliver");
    expect([reply.status, reply.body.status]).toEqual([202, "pending"]);
  });

  it("know nothing of another tenant's", async () => {
    const other = { ...SHOP, tenant: "other" };
    const list = await as(other, "GET", "/v1/jobs/job_a/webhook-deliveries");
    expect([list.status, list.body.error.message]).toEqual([404, "there is no job job_a"]);
    const again = await as(other, "POST", "/v1/webhook-deliveries/msg_a/redeliver");
    expect([again.status, again.body.error.message]).toEqual([404, "there is no webhook delivery msg_a"]);
  });

  it("show and rotate the secret of the caller's own tenant, and let nobody keep it on the way", async () => {
    const shown = await as(SHOP, "GET", "/v1/webhook-secret");
    expect(shown.headers["cache-control"]).toBe("no-store");
    expect(shown.body).toEqual({
      secret: "whsec_of_shop",
      created_at: "2026-11-23T09:00:00.000Z",
      previous_until: null,
    });
    await as(SHOP, "POST", "/v1/webhook-secret/rotate");
    await as(SHOP, "POST", "/v1/webhook-secret/rotate", { grace_seconds: 0 });
    expect(asked).toEqual([
      ["shop", 86_400_000],
      ["shop", 0],
    ]);
  });

  it.each([
    { path: "/v1/jobs/job_a/webhook-deliveries?status=lost", says: "status" },
    { path: "/v1/jobs/job_a/webhook-deliveries?limit=0", says: "limit" },
    { path: "/v1/jobs/job_a/webhook-deliveries?max=3", says: "max" },
  ])("refuse $path", async ({ path, says }) => {
    const reply = await as(SHOP, "GET", path);
    expect(reply.status).toBe(400);
    expect(reply.body.error.field).toBe(says);
  });

  it("refuse a grace that is none", async () => {
    const reply = await as(SHOP, "POST", "/v1/webhook-secret/rotate", { grace_seconds: -1 });
    expect([reply.status, reply.body.error.field]).toEqual([400, "grace_seconds"]);
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

const SHOP: JobCaller = { tenant: "shop", keyId: null, role: "user", priority: "standard", weight: 1, models: null };
const NOW = Date.parse("2026-11-23T09:00:00Z");

const FAILED: Delivery = {
  id: "msg_a",
  jobId: "job_a",
  tenant: "shop",
  event: "job.done",
  url: "https://shop.example/hook",
  body: '{"type":"job.done"}',
  createdAtMs: NOW,
  status: "failed",
  nextAtMs: null,
  attemptCount: 1,
  askedAtMs: NOW,
  tries: 1,
  attempts: [{ atMs: NOW, latencyMs: 12, status: 500, error: "it answered 500", excerpt: "no" }],
};

let app: HttpApp;
let caller: JobCaller;
let asked: unknown[];

beforeEach(() => {
  asked = [];
  app = buildServer({
    clock: systemClock,
    log: createLogger("jobs", "silent"),
    onBug: () => {},
    onEnd: () => {},
    bodyMaxBytes: 1_024,
    receiveTimeoutMs: 1_000,
    silenceMaxMs: 0,
    connectionsMax: 10,
  });
  const webhooks: Pick<Webhooks, "deliveries" | "delivery" | "redeliver"> & { secrets: object } = {
    deliveries: async (...question) => {
      asked.push(question);
      return [FAILED];
    },
    delivery: async (id) => (id === FAILED.id ? FAILED : undefined),
    redeliver: async (delivery) => ({ ...delivery, status: "pending", nextAtMs: NOW }),
    secrets: {
      of: async (tenant: string) => ({ secret: `whsec_of_${tenant}`, createdAtMs: NOW, previous: null }),
      rotate: async (tenant: string, { graceMs }: { graceMs: number }) => {
        asked.push([tenant, graceMs]);
        return { secret: "whsec_new", createdAtMs: NOW, previous: null };
      },
    },
  };
  const jobs = { get: (id: string) => (id === "job_a" ? { record: { tenant: "shop" } } : undefined) };
  webhookRoutes(app, {
    webhooks: webhooks as unknown as Webhooks,
    jobs: jobs as unknown as Jobs,
    callerOf: () => caller,
  });
});

afterEach(() => app.close());

async function as(who: JobCaller, method: "GET" | "POST", url: string, payload?: object) {
  caller = who;
  const reply = await app.inject({ method, url, ...(payload && { payload }) });
  return { status: reply.statusCode, headers: reply.headers, body: reply.json() };
}
