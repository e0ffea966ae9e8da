import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { bearer, keysJson, type TestKey, testKey } from "@atelier/gateway/testing/keys";
import { TEST_BUNDLE } from "@atelier/worker/testing/test-bundle";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { until } from "../support/ends.ts";
import { freePorts } from "../support/free-ports.ts";
import { KillableService } from "../support/killable-service.ts";
import { type NatsProcess, startNats } from "../support/nats.ts";
import { type RedisProcess, startRedis } from "../support/redis.ts";
import { startWorker, type TestWorker } from "../support/workers.ts";

const LEASE_MS = 2_000;
const MORE_THAN_ONE = expect.toSatisfy((attempts: number) => attempts > 1);
const UNAVAILABLE = { status: 503, body: { error: { code: "STORAGE_UNAVAILABLE" } } };
/** A simulated A10 of twice its speed makes some ten of these a second. */
const SHAPE = { width: 256, height: 256, steps: 8 };
const SLOW = { width: 512, height: 512, steps: 60 };

const scopes = ["generate", "jobs", "usage"];
const shop = testKey({ tenant: "shop", scopes });
const press = testKey({ tenant: "press", scopes });
const painter = testKey({ tenant: "shop", scopes: ["generate"] });
const admin = testKey({ tenant: "ops", role: "admin" });

/**
 * Two gateways, a jobs service and two workers with simulated devices, all of them processes, on one NATS and one Redis. The
 * tests run in this order: what the last one breaks stays broken.
 */
describe("bulk jobs of processes on NATS", () => {
  let nats: NatsProcess;
  let redis: RedisProcess;
  let objects: string;
  let gatewayUrls: readonly string[];
  let jobsUrl: string;
  let storage: Readonly<Record<string, string>>;
  let jobs: KillableService;
  const gateways: KillableService[] = [];
  const workers: TestWorker[] = [];
  /** Pictures that the shop made outside of jobs. */
  let interactive = 0;

  beforeAll(async () => {
    objects = mkdtempSync(join(tmpdir(), "atelier-jobs-faults-"));
    [nats, redis] = await Promise.all([startNats(), startRedis()]);
    const [jobsPort, ...gatewayPorts] = await freePorts(3);
    jobsUrl = `http://127.0.0.1:${jobsPort}`;
    gatewayUrls = gatewayPorts.map((port) => `http://127.0.0.1:${port}`);
    storage = {
      ATELIER_QUEUE: nats.url,
      ATELIER_OBJECTS: `file:${objects}`,
      ATELIER_QUEUE_LEASE_MS: String(LEASE_MS),
      ATELIER_QUEUE_TIMEOUT_MS: "1000",
    };
    jobs = jobsService("jobs");
    const [service, ...started] = await Promise.all([jobs.start(), worker("worker-1"), worker("worker-2")]);
    workers.push(...started);
    gateways.push(
      ...gatewayPorts.map(
        (port, i) =>
          new KillableService(`gateway ${i + 1}`, entryOf("gateway"), {
            ATELIER_LISTEN: `127.0.0.1:${port}`,
            ATELIER_WORKERS: workers.map(({ address }) => address).join(","),
            ATELIER_REDIS: redis.url,
            ATELIER_JOBS: jobsUrl,
            ATELIER_KEYS: keysJson([shop, press, painter, admin]),
            ATELIER_CACHE_SCOPE: "off",
            ATELIER_LOG_LEVEL: "warn",
          }),
      ),
    );
    await Promise.all([service, ...gateways.map((gateway) => gateway.start())]);
    for (const url of gatewayUrls) await until(async () => (await fetch(`${url}/readyz`)).ok);
  });

  afterAll(async () => {
    await Promise.all([jobs, ...gateways, ...workers].map((ours) => ours?.kill()));
    await Promise.all([nats?.stop(), redis?.stop()]);
    rmSync(objects, { recursive: true, force: true, maxRetries: 5 });
  });

  it("are refused soon while NATS is away, half of none is there, and the same submission is taken once it is back", async () => {
    const submit = () => submitted(2, { key: shop, idempotencyKey: "away" });
    await nats.kill();
    expect(await submit()).toMatchObject(UNAVAILABLE);
    expect(filesIn(objects)).toEqual([]);
    await until(async () => (await ready()).status === 503);

    await nats.start();
    const taken = await soon(submit, ({ status }) => status !== 503);
    expect(taken.status).toBe(201);
    expect((await ask("/v1/jobs")).body.jobs).toMatchObject([{ id: taken.body.id }]);
    expect((await done(taken.body.id)).counts).toMatchObject({ done: 2 });
  });

  it("are one for all that ask under one idempotency key at once, on whichever gateway", async () => {
    const submit = (i: number) => submitted(3, { key: shop, idempotencyKey: "raced", gateway: i });
    const answers = await Promise.all([0, 1, 0, 1, 0, 1].map(submit));
    const taken = answers.filter(({ status }) => status === 201);
    expect(taken.length).toBeGreaterThan(0);
    for (const { status, body } of answers)
      if (status !== 201) expect([status, body.error.code]).toEqual([409, "CONFLICT"]);
    const again = await soon(
      () => submit(1),
      ({ status }) => status !== 409,
    );
    const ids = new Set([...taken, again].map(({ body }) => body.id));
    expect([...ids]).toHaveLength(1);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect((await ask("/v1/jobs?name=job-raced")).body.jobs).toHaveLength(1);
    await done(again.body.id);
  });

  it("are nobody else's, whichever way they are asked for, and nobody's whose key is not for jobs", async () => {
    const { id } = (await submitted(1, { key: shop })).body;
    await done(id);
    const theirs = (method: string, path: string) => ask(`/v1/jobs/${id}${path}`, { method, key: press });
    for (const path of ["", "/items", "/items/0", "/items/0/image", "/events", "/manifest", "/archive"]) {
      expect([path, (await theirs("GET", path)).status]).toEqual([path, 404]);
    }
    for (const path of ["/pause", "/cancel", "/retry", "/clone", "/dead-letters/replay"]) {
      expect([path, (await theirs("POST", path)).status]).toEqual([path, 404]);
    }
    expect((await theirs("DELETE", "")).status).toBe(404);
    expect((await ask("/v1/jobs", { key: press })).body.jobs).toEqual([]);
    expect(await show(id)).toMatchObject({ status: "done", counts: { done: 1 } });

    for (const path of ["/v1/jobs", `/v1/jobs/${id}`]) {
      expect(await ask(path, { key: painter })).toMatchObject({
        status: 403,
        body: { error: { code: "FORBIDDEN", message: expect.stringContaining("scope jobs") } },
      });
    }
    expect((await submitted(1, { key: painter })).status).toBe(403);
  });

  it("are all made once although NATS was killed meanwhile, and interactive requests never noticed", async () => {
    const { id } = (await submitted(24, { key: shop })).body;
    await until(async () => (await show(id)).counts.done >= 3);
    await nats.kill();
    for (const i of [0, 1]) {
      const made = await ask("/v1/generations", {
        method: "POST",
        key: shop,
        gateway: i,
        json: { prompt: `x ${i}`, ...SHAPE },
      });
      expect(made.status).toBe(200);
      interactive += 1;
    }
    await nats.start();
    await done(id);
    await madeOnce(id, 24);
    await until(bookedOnce);
  });

  it("are handed out again when somebody deleted the stream that they were in, which the log says", async () => {
    const { id } = (await submitted(24, { key: shop })).body;
    await until(async () => (await show(id)).counts.done >= 3);
    await deleteStream("ATELIER_WORK");
    await done(id);
    await madeOnce(id, 24);
    expect(jobs.output).toContain(
      "the work queue was deleted and is there again, empty: handing out again what it held",
    );
  });

  it("go on at the second instance of the service, which waited for the first one's end", async () => {
    const { id } = (await submitted(24, { key: shop })).body;
    await until(async () => (await show(id)).counts.done >= 3);
    const first = jobs;
    const second = jobsService("second", "info");
    let listening = false;
    const started = second.start().then(() => {
      listening = true;
    });
    await until(() => second.output.includes("another instance is active"));
    expect(listening).toBe(false);
    await first.kill();
    jobs = second;
    await started;
    await done(id);
    await madeOnce(id, 24);
    expect(second.unasked).toEqual([]);
  });

  it("count a picture once although its worker, which stood still past its lease, comes back with it", async () => {
    const { id } = (await submitted(6, { key: shop, shape: SLOW })).body;
    const item = async () => (await ask(`/v1/jobs/${id}/items/0`)).body as Item;
    const held = await soon(item, ({ worker }) => worker !== null);
    const still = workers.find((one) => one.id === held.worker);
    const outcomes = () => still!.counted("atelier_worker_items_total");
    const endedBefore = await outcomes();
    still!.signal("SIGSTOP");
    await done(id);
    const seen = await show(id);
    still!.signal("SIGCONT");
    await until(async () => (await outcomes()) > endedBefore);

    expect(await show(id)).toMatchObject({ status: "done", counts: seen.counts });
    await madeOnce(id, 6);
    expect(await item()).toMatchObject({
      result: { attempts: MORE_THAN_ONE },
      worker: expect.not.stringMatching(held.worker!),
    });
    await until(bookedOnce);
  });

  it("wait while their tenant's month is used up, say so, and go on when it may have more", async () => {
    const { id } = (await submitted(150, { key: press })).body;
    await until(async () => (await show(id, press)).counts.done >= 3);
    await setImagesPerMonth(5);
    await until(async () => (await show(id, press)).held_for === "images_per_month");
    // What was handed out before is still made; after that nothing is.
    const { queued } = await soon(
      async () => (await show(id, press)).counts,
      async ({ running }) => running === 0 && (await depth()) === 0,
    );
    expect(queued).toBeGreaterThan(0);
    expect((await submitted(1, { key: press })).body.error).toMatchObject({ code: "QUOTA_EXCEEDED" });
    await setImagesPerMonth(1_000);
    await done(id, press);
    expect((await show(id, press)).held_for).toBeNull();
    await madeOnce(id, 150, press);
  });

  it("call a receiver that was down once it is up, once and whole", async () => {
    const [port] = await freePorts(1);
    const url = `http://127.0.0.1:${port}/hook`;
    const { id } = (await submitted(1, { key: shop, json: { webhook: { url, events: ["job.done"] } } })).body;
    await done(id);
    const deliveries = async () => (await ask(`/v1/jobs/${id}/webhook-deliveries`)).body.deliveries as Delivery[];
    await until(async () => (await deliveries())[0]?.attempts[0] !== undefined);
    expect(await deliveries()).toMatchObject([{ status: "pending", event: "job.done" }]);
    const receiver = await listen(port!);
    // A service that is killed meanwhile does not forget.
    await jobs.kill();
    await jobs.start();
    await until(async () => receiver.calls.length > 0);
    expect(JSON.parse(receiver.calls[0]!)).toMatchObject({ type: "job.done", data: { job: { id } } });
    await until(async () => (await deliveries())[0]!.status === "delivered");
    expect(receiver.calls).toHaveLength(1);
    receiver.close();
  });

  it("are not pretended to go on when somebody deleted the event log; what is left is refused until it is gone too", async () => {
    const { id } = (await submitted(24, { key: shop })).body;
    await until(async () => (await show(id)).counts.done >= 3);
    await deleteStream("ATELIER_EVENTS");
    const says = expect.stringMatching(/ATELIER_EVENTS|event log/);
    const away = { status: 503, body: { error: { code: "STORAGE_UNAVAILABLE", message: says } } };
    await until(async () => (await ready()).status === 503);
    for (let i = 0; i < 15; i++) {
      expect(await ready()).toMatchObject(away);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(await ask(`/v1/jobs/${id}/pause`, { method: "POST" })).toMatchObject(away);
    expect(await submitted(1, { key: shop })).toMatchObject(away);

    // There is no guessing which pictures were made: what is left is refused, until it is gone too.
    await jobs.kill();
    const started = jobs.start();
    await until(() => /stream ATELIER_EVENTS was deleted.* delete ATELIER_RECORDS too/.test(jobs.output));
    await deleteStream("ATELIER_RECORDS");
    await started;
    expect((await ask("/v1/jobs")).body.jobs).toEqual([]);
    const anew = (await submitted(4, { key: shop })).body.id;
    await done(anew);
    await madeOnce(anew, 4);
  });

  // --- Vocabulary

  function jobsService(name: string, logLevel = "warn"): KillableService {
    return new KillableService(name, entryOf("jobs"), {
      ...storage,
      ATELIER_JOBS_LISTEN: new URL(jobsUrl).host,
      ATELIER_GATEWAY: gatewayUrls.join(","),
      ATELIER_WEBHOOK_PRIVATE: "allow",
      ATELIER_LOG_LEVEL: logLevel,
    });
  }

  function worker(id: string): Promise<TestWorker> {
    return startWorker({
      ...storage,
      ATELIER_WORKER_ID: id,
      ATELIER_MODELS: TEST_BUNDLE,
      ATELIER_DEVICE: "simulated",
      ATELIER_SIMULATED_GPU: "a10",
      ATELIER_SIMULATED_SPEED: "2",
    });
  }

  interface Asking {
    readonly method?: string;
    readonly key?: TestKey;
    readonly gateway?: number;
    readonly json?: object;
    readonly headers?: Readonly<Record<string, string>>;
  }

  async function ask(path: string, { method = "GET", key = shop, gateway = 0, json, headers }: Asking = {}) {
    const answer = await fetch(gatewayUrls[gateway] + path, {
      method,
      headers: { ...bearer(key), ...(json && { "content-type": "application/json" }), ...headers },
      ...(json && { body: JSON.stringify(json) }),
      signal: AbortSignal.timeout(15_000),
    });
    return { status: answer.status, headers: answer.headers, body: await bodyOf(answer) };
  }

  function submitted(
    items: number,
    asking: Asking & { readonly idempotencyKey?: string; readonly shape?: object },
  ): ReturnType<typeof ask> {
    const { idempotencyKey, shape = SHAPE, json, ...rest } = asking;
    return ask("/v1/jobs", {
      ...rest,
      method: "POST",
      ...(idempotencyKey !== undefined && { headers: { "idempotency-key": idempotencyKey } }),
      json: {
        name: `job-${idempotencyKey ?? "any"}`,
        template: { prompt: "{product}", seed: 7, defaults: shape },
        rows: Array.from({ length: items }, (_, i) => ({ product: `mug ${i}` })),
        ...json,
      },
    });
  }

  async function show(id: string, key = shop): Promise<Job> {
    const { status, body } = await ask(`/v1/jobs/${id}`, { key });
    // While the service restarts nobody answers; whoever looks looks again.
    return status === 200 ? body : { status: "unknown", counts: { queued: 0, running: 0, done: 0 }, held_for: null };
  }

  async function done(id: string, key = shop): Promise<Job> {
    return soon(
      () => show(id, key),
      ({ status }) => status === "done",
    );
  }

  /** Each item has one picture of its own, and nothing else counts. */
  async function madeOnce(id: string, items: number, key = shop): Promise<void> {
    const job = await show(id, key);
    expect(job.counts).toMatchObject({ queued: 0, running: 0, done: items, failed: 0 });
    const manifest = (await ask(`/v1/jobs/${id}/manifest`, { key })).body as { index: number; sha256: string }[];
    expect(manifest.map(({ index }) => index)).toEqual(Array.from({ length: items }, (_, i) => i));
    expect(new Set(manifest.map(({ sha256 }) => sha256)).size).toBe(items);
    expect(readdirSync(join(objects, "jobs", id, "pictures"))).toHaveLength(items);
  }

  /** The shop has all its pictures on its bill, and no other. */
  async function bookedOnce(): Promise<boolean> {
    const { jobs: all } = (await ask("/v1/jobs?limit=100")).body as { jobs: Job[] };
    const made = all.reduce((sum, { counts }) => sum + counts.done, interactive);
    return (await ask("/v1/usage")).body.total.images === made;
  }

  async function setImagesPerMonth(images: number): Promise<void> {
    const json = { images_per_month: images };
    expect((await ask("/v1/admin/tenants/press", { method: "PUT", key: admin, json })).status).toBe(200);
  }

  const ready = async () => {
    const answer = await fetch(`${jobsUrl}/readyz`);
    return { status: answer.status, body: await bodyOf(answer) };
  };

  /** What is in the work stream. */
  async function depth(): Promise<number> {
    return withManager(async (manager) => (await manager.streams.info("ATELIER_WORK")).state.messages);
  }

  async function deleteStream(name: string): Promise<void> {
    await withManager((manager) => manager.streams.delete(name));
  }

  async function withManager<T>(
    use: (manager: Awaited<ReturnType<typeof jetstreamManager>>) => Promise<T>,
  ): Promise<T> {
    const connection = await connect({ servers: nats.url });
    try {
      return await use(await jetstreamManager(connection));
    } finally {
      await connection.close();
    }
  }
});

interface Job {
  readonly status: string;
  readonly counts: { readonly queued: number; readonly running: number; readonly done: number };
  readonly held_for: string | null;
}

interface Item {
  readonly worker: string | null;
}

interface Delivery {
  readonly status: string;
  readonly attempts: readonly unknown[];
}

/** JSON, or the lines of JSON lines. */
// biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for.
async function bodyOf(answer: Response): Promise<any> {
  const said = await answer.text();
  const type = answer.headers.get("content-type") ?? "";
  if (type.startsWith("application/json")) return JSON.parse(said);
  if (/jsonl|ndjson/.test(type))
    return said
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
  return said;
}

/** What `look` gives once it is as wanted. */
async function soon<T>(look: () => Promise<T>, wanted: (found: T) => boolean | Promise<boolean>): Promise<T> {
  let found!: T;
  await until(async () => {
    found = await look();
    return wanted(found);
  }, 30_000);
  return found;
}

function filesIn(folder: string): readonly string[] {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map(({ name }) => name);
}

function entryOf(service: string): string {
  return join(import.meta.dirname, `../../services/${service}/src/main.ts`);
}

/** A webhook's receiver. */
async function listen(port: number) {
  const calls: string[] = [];
  const server = createServer(async (request, reply) => {
    calls.push(await text(request));
    reply.end();
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  return { calls, close: () => void server.close() };
}
