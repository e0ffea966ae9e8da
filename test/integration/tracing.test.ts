import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { atEnd, running, until } from "../support/ends.ts";
import { freePorts } from "../support/free-ports.ts";
import { ask, follow } from "../support/generate-client.ts";
import { KillableService } from "../support/killable-service.ts";
import { startNats } from "../support/nats.ts";
import { OtlpReceiver, type ReceivedSpan, treeOf } from "../support/otlp-receiver.ts";
import { startWorker, type TestWorker } from "../support/workers.ts";

const SMALL = { prompt: "a red mug", width: 128, height: 128, steps: 3, seed: 7 };
const LONG = { ...SMALL, steps: 60, width: 256, height: 256 };
const TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER_SPAN = "00f067aa0ba902b7";

/**
 * A gateway, a jobs service and two workers with the embedded model, all of them processes; their collector is in the test.
 * The tests run in this order: what one of them kills stays dead.
 */
describe("a request's trace", () => {
  let receiver: OtlpReceiver;
  let folder: string;
  let workers: readonly TestWorker[];
  let gateway: KillableService;
  let gatewayUrl: string;
  let jobs: KillableService;
  let queue: Readonly<Record<string, string>>;

  beforeAll(async () => {
    [receiver, folder] = await Promise.all([OtlpReceiver.start(), mkdtemp(join(tmpdir(), "atelier-tracing-"))]);
    const [gatewayPort, jobsPort] = await freePorts(2);
    gatewayUrl = `http://127.0.0.1:${gatewayPort}`;
    queue = { ATELIER_QUEUE: `sqlite:${join(folder, "queue.db")}`, ATELIER_OBJECTS: `file:${join(folder, "objects")}` };
    workers = await Promise.all(
      [1, 2].map((i) => workerWith({ ATELIER_WORKER_ID: `worker-${i}`, ...queue, ...receiver.env })),
    );
    gateway = service("gateway", {
      ATELIER_LISTEN: `127.0.0.1:${gatewayPort}`,
      ATELIER_WORKERS: workers.map(({ address }) => address).join(","),
      ATELIER_JOBS: `http://127.0.0.1:${jobsPort}`,
      ATELIER_CACHE_MIN_ASKS: "1",
      ATELIER_CHECKPOINT_EVERY_STEPS: "1",
      ...receiver.env,
    });
    jobs = jobsService(jobsPort!, queue);
    await Promise.all([gateway.start(), jobs.start()]);
    await until(async () => (await fetch(`${gatewayUrl}/readyz`)).ok);
  });
  afterAll(async () => {
    await Promise.all([gateway.kill(), jobs.kill(), ...workers.map((worker) => worker.kill())]);
    await receiver.stop();
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  });

  it("goes from HTTP through the worker's stages to the picture, in one tree that begins with the caller's span", async () => {
    const headers = { "x-request-id": "order-17", traceparent: `00-${TRACE}-${CALLER_SPAN}-01` };
    const response = await post("/generate", SMALL, headers);
    expect(response.headers.get("x-request-id")).toBe("order-17");

    const spans = await complete(TRACE, ["POST /generate", "image_decode"]);
    expect(treeOf(spans)).toBe(
      `atelier-gateway POST /generate
  atelier-gateway cache.lookup
  atelier-gateway admission
  atelier-gateway dispatch
    atelier-gateway place
    atelier-gateway atelier.v1.WorkerService/Generate
      atelier-worker atelier.v1.WorkerService/Generate
        atelier-worker text_encode
        atelier-worker denoise
        atelier-worker image_decode`,
    );
    const named = (name: string) => spans.find((span) => span.name === name)!;
    expect(named("POST /generate")).toMatchObject({
      kind: 2,
      parentSpanId: CALLER_SPAN,
      attributes: {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "atelier.request_id": "order-17",
        "atelier.tenant": "local",
        "atelier.cache": "miss",
      },
    });
    const denoise = named("denoise");
    expect(denoise.events.map(({ attributes }) => attributes["atelier.step.index"])).toEqual([1, 2, 3]);
    expect(denoise.events[0]).toMatchObject({
      name: "step_batch",
      attributes: { "atelier.step.rows": 2, "atelier.step.batch_mates": 0 },
    });
    expect(denoise.attributes).toMatchObject({ "atelier.steps": 3, "atelier.queue_wait_ms": expect.any(Number) });
    const call = spans.find(({ service, name }) => service === "atelier-worker" && name.endsWith("/Generate"))!;
    expect(call.attributes["atelier.request_id"]).toBe("order-17");
    expect(JSON.stringify(spans)).not.toContain(SMALL.prompt);
  });

  it("is linked to from those who share what it makes, and from those who read it later", async () => {
    const same = { ...LONG, seed: 99 };
    const answers = await Promise.all([post("/generate", same), post("/generate", same)]);
    const outcomes = answers.map(({ headers }) => headers.get("x-atelier-cache"));
    expect(outcomes.toSorted()).toEqual(["miss", "shared"]);
    const request = (cache: string) =>
      named("POST /generate", ({ traceId, attributes }) => traceId !== TRACE && attributes["atelier.cache"] === cache);
    const [maker, follower] = await Promise.all([request("miss"), request("shared")]);
    expect(follower.links).toMatchObject([{ traceId: maker.traceId, spanId: maker.spanId }]);

    const started = await post("/v1/generations", { ...SMALL, seed: 8 }, { prefer: "respond-async" });
    const { id } = (await started.json()) as { id: string };
    await (await fetch(`${gatewayUrl}/v1/generations/${id}?wait=10000`)).json();
    const [making, reading] = [await named("generation.background"), await named("GET /v1/generations/:id")];
    expect(reading.traceId).not.toBe(making.traceId);
    expect(reading.links).toMatchObject([{ traceId: making.traceId, spanId: making.spanId }]);
  });

  it("begins anew where a caller's traceparent is malformed, and is not recorded where the caller's is not", async () => {
    const before = receiver.spans().length;
    for (const traceparent of [`00-${TRACE}-${CALLER_SPAN}-00`, `00-${"0".repeat(32)}-${CALLER_SPAN}-01`, "nonsense"]) {
      await (await fetch(`${gatewayUrl}/v1/models`, { headers: { traceparent } })).text();
    }
    await until(() => receiver.spans().length === before + 2);
    const begun = receiver.spans().slice(before);
    expect(begun.map(({ name, parentSpanId }) => [name, parentSpanId])).toEqual([
      ["GET /v1/models", ""],
      ["GET /v1/models", ""],
    ]);
    expect(begun.some(({ traceId }) => traceId === TRACE)).toBe(false);
  });

  it("goes through a queue in SQLite with a bulk item, to its storage and its webhook", async () => {
    const hook = await startHook();
    const job = {
      name: "mugs",
      rows: [{ product: "mug" }],
      template: TEMPLATE,
      webhook: { url: hook, events: ["job.done"] },
    };
    const submitted = await post("/v1/jobs", job, { "x-request-id": "sheet-4" });
    expect([submitted.status, submitted.headers.get("x-request-id")]).toEqual([201, "sheet-4"]);
    await submitted.arrayBuffer();
    const { traceId } = await named("webhook");
    const spans = await complete(traceId, ["webhook", "job.item", "item.store"]);
    expect(treeOf(spans)).toBe(
      `atelier-gateway POST /v1/jobs
  atelier-jobs POST /v1/jobs
    atelier-gateway POST /internal/v1/complete
    atelier-jobs job.publish
      atelier-worker job.item
        atelier-worker text_encode
        atelier-worker denoise
        atelier-worker image_decode
        atelier-worker item.store
    atelier-jobs webhook`,
    );
    const item = spans.find(({ name }) => name === "job.item")!;
    expect(item).toMatchObject({ kind: 5, attributes: { "atelier.job.item_end": "done", "atelier.job.item": 0 } });
  });

  it("goes through a queue in NATS in the message's headers", async () => {
    const nats = await running(startNats());
    const [port] = await freePorts(1);
    const inNats = { ...queue, ATELIER_QUEUE: nats.url };
    const own = jobsService(port!, inNats);
    await own.start();
    atEnd(() => own.kill());
    const caller = { tenant: "shop", keyId: null, role: "user", priority: "interactive", weight: 1, models: null };
    const said = { "x-atelier-caller": Buffer.from(JSON.stringify(caller)).toString("base64url") };
    const traceId = "a".repeat(32);
    const trace = { traceparent: `00-${traceId}-${CALLER_SPAN}-01`, tracestate: "vendor=1" };
    const url = `http://127.0.0.1:${port}/v1/jobs`;
    const job = { rows: [{ product: "mug" }], template: TEMPLATE };
    const submitted = await postTo(url, job, { ...said, ...trace });
    expect(submitted.status).toBe(201);
    await submitted.arrayBuffer();

    const connection = await connect({ servers: nats.url });
    const manager = await jetstreamManager(connection);
    const published = await named("job.publish", (span) => span.traceId === traceId);
    const message = await manager.streams.getMessage("ATELIER_WORK", { last_by_subj: ">" });
    expect([message?.header.get("traceparent"), message?.header.get("tracestate")]).toEqual([
      `00-${traceId}-${published.spanId}-01`,
      "vendor=1",
    ]);
    await connection.close();

    const worker = await workerWith({ ATELIER_WORKER_ID: "worker-nats", ...inNats, ...receiver.env });
    atEnd(() => worker.kill());
    const item = await named("job.item", (span) => span.traceId === traceId);
    expect(item.parentSpanId).toBe(published.spanId);
    expect(await named("denoise", (span) => span.traceId === traceId)).toMatchObject({ parentSpanId: item.spanId });
  });

  it.each(["hangs", "refuses"] as const)("harms no request where its receiver %s", async (manner) => {
    receiver.manner = manner;
    const before = receiver.deliveries;
    for (let seed = 100; seed < 105; seed++) await ask(gatewayUrl, { ...SMALL, seed });
    await until(() => receiver.deliveries > before);
    await ask(gatewayUrl, SMALL);
    receiver.manner = "takes";
  });

  it("shows both attempts where a worker is killed in the middle of denoising", async () => {
    const followed = follow(gatewayUrl, { ...LONG, seed: 11 });
    await followed.stepsDone(10);
    const chosen = await busy(workers);
    await chosen.kill();
    await followed.completed;

    const failed = await named("atelier.v1.WorkerService/Generate", ({ status, kind }) => kind === 3 && status === 2);
    const { traceId, spanId } = failed;
    expect(failed.attributes).toMatchObject({
      "atelier.worker.id": chosen.id,
      "error.type": "WORKER_LOST",
      "atelier.attempt.kind": "first",
    });
    const second = await named("atelier.v1.WorkerService/Generate", (span) => span.kind === 3 && span.links.length > 0);
    expect(second).toMatchObject({
      traceId,
      status: 0,
      attributes: { "atelier.attempt.kind": "retry", "atelier.resumed_states": 1 },
      links: [{ traceId, spanId }],
    });
    expect(second.attributes["atelier.worker.id"]).not.toBe(chosen.id);
    const dispatch = await named("dispatch", (span) => span.traceId === traceId);
    expect(dispatch.events).toMatchObject([{ name: "attempt failed", attributes: { "error.type": "WORKER_LOST" } }]);
    // What the dead worker did is lost with it; its successor's is there, from the checkpoint on.
    const denoise = await named("denoise", (span) => span.traceId === traceId);
    expect(denoise.attributes["atelier.steps.resumed_at"]).toBeGreaterThanOrEqual(9);
  });

  it("is given up where its receiver hangs while the service stops", async () => {
    receiver.manner = "hangs";
    await ask(gatewayUrl, { ...SMALL, seed: 200 });
    const survivor = workers.find(({ alive }) => alive)!;
    survivor.signal("SIGTERM");
    expect((await survivor.exited).code).toBe(0);
  });

  function post(path: string, body: object, headers: Readonly<Record<string, string>> = {}): Promise<Response> {
    return postTo(`${gatewayUrl}${path}`, body, headers);
  }

  /** The first span of this name that has ended and is such a one. */
  async function named(name: string, isIt: (span: ReceivedSpan) => boolean = () => true): Promise<ReceivedSpan> {
    const find = () => receiver.spans().find((span) => span.name === name && isIt(span));
    await until(() => find() !== undefined);
    return find()!;
  }

  /** All of a trace: these are there, and of every span but the first its parent. */
  async function complete(traceId: string, names: readonly string[]): Promise<readonly ReceivedSpan[]> {
    await until(() => {
      const spans = receiver.spans(traceId);
      const ids = new Set(spans.map(({ spanId }) => spanId));
      const first = spans.filter(({ parentSpanId }) => !ids.has(parentSpanId));
      return first.length === 1 && names.every((name) => spans.some((span) => span.name === name));
    });
    return receiver.spans(traceId);
  }

  function jobsService(port: number, storage: Readonly<Record<string, string>>): KillableService {
    return service("jobs", {
      ...storage,
      ATELIER_JOBS_LISTEN: `127.0.0.1:${port}`,
      ATELIER_GATEWAY: gatewayUrl,
      ATELIER_WEBHOOK_PRIVATE: "allow",
      ...receiver.env,
    });
  }
});

const TEMPLATE = { prompt: "a red {product}", seed: 7, defaults: { width: 128, height: 128, steps: 3 } };

function service(name: "gateway" | "jobs", env: Readonly<Record<string, string>>): KillableService {
  const entry = join(import.meta.dirname, `../../services/${name}/src/main.ts`);
  return new KillableService(name, entry, { ATELIER_LOG_LEVEL: "warn", ...env });
}

function workerWith(env: Readonly<Record<string, string>>): Promise<TestWorker> {
  return startWorker({ ATELIER_THREADS: "1", ATELIER_LOG_LEVEL: "warn", ...env });
}

function postTo(url: string, body: object, headers: Readonly<Record<string, string>>): Promise<Response> {
  const type = { "content-type": "application/json" };
  return fetch(url, { method: "POST", headers: { ...type, ...headers }, body: JSON.stringify(body) });
}

async function busy(workers: readonly TestWorker[]): Promise<TestWorker> {
  for (;;) {
    for (const worker of workers) if ((await worker.counted("atelier_worker_requests_in_flight")) > 0) return worker;
  }
}

/** A webhook's receiver. */
async function startHook(): Promise<string> {
  const server = createServer((request, response) => {
    request.resume();
    response.writeHead(204).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  atEnd(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`;
}
