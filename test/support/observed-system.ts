import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bearer, keysJson, type TestKey, testKey } from "@atelier/gateway/testing/keys";
import { TEST_BUNDLE } from "@atelier/worker/testing/test-bundle";
import { freePorts } from "./free-ports.ts";
import { KillableService } from "./killable-service.ts";
import { startNats } from "./nats.ts";
import type { PrometheusTarget } from "./prometheus.ts";
import { startRedis } from "./redis.ts";

const QUEUE = { ATELIER_QUEUE_LEASE_MS: "2000", ATELIER_QUEUE_TIMEOUT_MS: "1000" };
const CALLERS = 6;
const PROMPTS = [
  "a red mug",
  "a blue mug",
  "a green bowl",
  "a lamp",
  "a white plate",
  "a black vase",
  "a chair",
  "a shelf",
];

/**
 * A gateway, a jobs service and three workers with simulated devices in two pools, all of them processes, with Redis and
 * NATS; load on them that makes happen what metrics are there to tell, failures among it; and what Prometheus is to scrape.
 */
export async function startObservedSystem(): Promise<ObservedSystem> {
  const folder = mkdtempSync(join(tmpdir(), "atelier-observed-"));
  const [nats, redis, receiver, others] = await Promise.all([startNats(), startRedis(), webhookReceiver(), fixtures()]);
  const ports = await freePorts(8);
  const [gatewayPort, jobsPort] = ports as [number, number];
  const key = {
    shop: testKey({ tenant: "shop", scopes: ["generate", "jobs"], priority: "interactive" }),
    press: testKey({ tenant: "press", scopes: ["generate", "jobs"], priority: "standard" }),
    small: testKey({ tenant: "small", scopes: ["generate"] }),
  };
  const storage = { ...QUEUE, ATELIER_QUEUE: nats.url, ATELIER_OBJECTS: `file:${join(folder, "objects")}` };
  const workers = ["a10", "a10", "l4"].map(
    (pool, i) =>
      new KillableService(`worker ${i + 1}`, entryOf("worker"), {
        ...storage,
        ATELIER_WORKER_ID: `worker-${i + 1}`,
        ATELIER_WORKER_POOL: pool,
        ATELIER_WORKER_LISTEN: `127.0.0.1:${ports[2 + i]}`,
        ATELIER_WORKER_METRICS_LISTEN: `127.0.0.1:${ports[5 + i]}`,
        ATELIER_MODELS: TEST_BUNDLE,
        ATELIER_DEVICE: "simulated",
        ATELIER_SIMULATED_GPU: "a10",
        ATELIER_LOG_LEVEL: "error",
      }),
  );
  const gateway = new KillableService("gateway", entryOf("gateway"), {
    ATELIER_LISTEN: `127.0.0.1:${gatewayPort}`,
    ATELIER_WORKERS: workers.map((_, i) => `127.0.0.1:${ports[2 + i]}`).join(","),
    ATELIER_REDIS: redis.url,
    ATELIER_JOBS: `http://127.0.0.1:${jobsPort}`,
    ATELIER_KEYS: keysJson(Object.values(key), [{ id: "small", requests_per_minute: 1 }]),
    ATELIER_PRICE_PER_DEVICE_HOUR: "0.6",
    ATELIER_LOG_LEVEL: "fatal",
  });
  const jobs = new KillableService("jobs", entryOf("jobs"), {
    ...storage,
    ATELIER_JOBS_LISTEN: `127.0.0.1:${jobsPort}`,
    ATELIER_GATEWAY: `http://127.0.0.1:${gatewayPort}`,
    ATELIER_WEBHOOK_PRIVATE: "allow",
    ATELIER_LOG_LEVEL: "fatal",
  });
  const url = `http://127.0.0.1:${gatewayPort}`;
  const stop = async () => {
    await Promise.all([gateway, jobs, ...workers].map((service) => service.kill()));
    await Promise.all([nats.stop(), redis.stop(), receiver.stop(), others.stop()]);
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  };
  try {
    await Promise.all([gateway, jobs, ...workers].map((service) => service.start()));
    while (!(await allReady(url, workers.length))) await sleep(50);
  } catch (error) {
    await stop();
    throw error;
  }
  const at = (port: number) => `127.0.0.1:${port}`;
  const labels = { namespace: "shop" };
  return {
    url,
    targets: [
      { job: "atelier-gateway", addresses: [at(gatewayPort)], labels },
      { job: "atelier-jobs", addresses: [at(jobsPort)], labels },
      ...["a10", "a10", "l4"].map((pool, i) => ({
        job: `atelier-worker-${i + 1}`,
        addresses: [at(ports[5 + i]!)],
        labels: { ...labels, pool },
      })),
      ...others.targets,
    ],
    run: (seconds) => load({ url, key, hook: receiver.url, workers, redis }, seconds),
    stop,
  };
}

export interface ObservedSystem {
  readonly url: string;
  readonly targets: readonly PrometheusTarget[];
  /** Traffic of so many seconds: bulk jobs, callers, mistakes, a worker that is killed and one that drains, Redis that hangs. */
  run(seconds: number): Promise<void>;
  stop(): Promise<void>;
}

interface Loaded {
  readonly url: string;
  readonly key: Readonly<Record<"shop" | "press" | "small", TestKey>>;
  readonly hook: string;
  readonly workers: readonly KillableService[];
  readonly redis: { pause(): void; resume(): void };
}

async function load({ url, key, hook, workers, redis }: Loaded, seconds: number): Promise<void> {
  const endMs = Date.now() + seconds * 1_000;
  const post = async (path: string, body: object, by: TestKey, headers: Readonly<Record<string, string>> = {}) => {
    const answer = await fetch(url + path, {
      method: "POST",
      headers: { "content-type": "application/json", ...bearer(by), ...headers },
      body: JSON.stringify(body),
    });
    await answer.arrayBuffer();
    return answer.status;
  };
  const job = (items: number, receiver: string) =>
    post(
      "/v1/jobs",
      {
        name: "sheet",
        template: { prompt: "{product}", seed: 7, defaults: { width: 256, height: 256, steps: 20 } },
        rows: Array.from({ length: items }, (_, i) => ({ product: `mug ${i}` })),
        webhook: { url: receiver },
      },
      key.press,
    );
  const submitted = await Promise.all([job(8, hook), job(40 * seconds, `${hook}/refuses`)]);
  if (submitted.some((status) => status !== 201)) throw new Error(`jobs were answered with ${submitted}`);

  let asked = 0;
  const caller = async (n: number) => {
    while (Date.now() < endMs) {
      const i = asked++;
      const by = n % 3 === 0 ? key.press : key.shop;
      const again = i % 3 === 0; // asked for before, so that a cache has it
      const prompt = again ? PROMPTS[(i / 3) % 2] : `${PROMPTS[i % PROMPTS.length]} ${i}`;
      const shape = { prompt, width: 512, height: 512, steps: 25, ...(again && { seed: 1 }) };
      // Not to be counted by status here: a worker's death may cost one of them its answer.
      if (n === 0) await post("/v1/generations", { ...shape, cache: "approximate" }, by);
      else if (n === 1) await post("/generate", shape, by, { accept: "text/event-stream" });
      else await post("/generate", shape, by, i % 5 === 0 ? { "idempotency-key": `ask-${i}` } : {});
    }
  };
  const mistakes = async () => {
    while (Date.now() < endMs) {
      await post("/generate", { prompt: "a mug", steps: -1 }, key.shop);
      await post("/generate", { prompt: "a mug", steps: 1 }, key.small); // more than its one a minute
      await post("/v1/generations", { prompt: "a late mug", steps: 60, cache: "off", deadline_ms: 20 }, key.shop);
      await sleep(500);
    }
  };
  const accidents = async () => {
    const turn = (seconds * 1_000) / 5;
    await sleep(turn);
    await workers[1]!.kill();
    await sleep(turn / 2);
    await workers[1]!.start();
    await sleep(turn / 2);
    redis.pause();
    await sleep(900);
    redis.resume();
    await sleep(turn);
    await workers[0]!.end();
    await workers[0]!.start();
  };
  await Promise.all([...Array.from({ length: CALLERS }, (_, n) => caller(n)), mistakes(), accidents()]);
}

async function allReady(url: string, workers: number): Promise<boolean> {
  const answer = await fetch(`${url}/readyz`);
  return answer.ok && ((await answer.json()) as { workers_ready: number }).workers_ready === workers;
}

/** Takes calls at /, refuses them at /refuses. */
async function webhookReceiver() {
  const server = createServer((request, response) => {
    request.resume();
    response.writeHead(request.url?.startsWith("/hook/refuses") ? 503 : 204).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`,
    stop: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/**
 * What programs of others serve in a cluster, by the names that they document, with made-up values: NVIDIA's DCGM exporter
 * (etc/default-counters.csv), kube-state-metrics (docs/metrics/workload/horizontalpodautoscaler-metrics.md), the kubelet
 * (volume stats) and cert-manager. None of them runs here: these lines only show that rules and panels ask for names that
 * there are.
 */
const FIXTURES = {
  dcgm: () =>
    [0, 1, 2, 3].flatMap((gpu) => {
      const labels = `{gpu="${gpu}",UUID="GPU-${gpu}",device="nvidia${gpu}",modelName="NVIDIA A10",Hostname="node-1"}`;
      const busy = 60 + 30 * Math.sin(Date.now() / 5_000 + gpu);
      return [
        `DCGM_FI_DEV_GPU_UTIL${labels} ${busy.toFixed(0)}`,
        `DCGM_FI_DEV_FB_USED${labels} ${9_000 + 100 * gpu}`,
        `DCGM_FI_DEV_GPU_TEMP${labels} ${(45 + busy / 4).toFixed(0)}`,
        `DCGM_FI_DEV_POWER_USAGE${labels} ${(40 + busy).toFixed(1)}`,
        `DCGM_FI_DEV_SM_CLOCK${labels} 1695`,
        `DCGM_FI_DEV_XID_ERRORS${labels} 0`,
      ];
    }),
  "kube-state-metrics": () => [
    'kube_horizontalpodautoscaler_status_desired_replicas{horizontalpodautoscaler="atelier-worker-a10"} 2',
    'kube_horizontalpodautoscaler_spec_max_replicas{horizontalpodautoscaler="atelier-worker-a10"} 10',
  ],
  kubelet: () => [
    'kubelet_volume_stats_available_bytes{persistentvolumeclaim="atelier-nats"} 5e9',
    'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="atelier-nats"} 1e10',
  ],
  "cert-manager": () => ['certmanager_certificate_expiration_timestamp_seconds{name="atelier-gateway"} 4e9'],
};

async function fixtures() {
  const server = createServer((request, response) => {
    const lines = FIXTURES[request.url!.slice(1) as keyof typeof FIXTURES]();
    response.writeHead(200, { "content-type": "text/plain; version=0.0.4" }).end(`${lines.join("\n")}\n`);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    targets: Object.keys(FIXTURES).map(
      (name): PrometheusTarget => ({
        job: name,
        addresses: [address],
        labels: { namespace: "shop" },
        path: `/${name}`,
      }),
    ),
    stop: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function entryOf(service: string): string {
  return join(import.meta.dirname, `../../services/${service}/src/main.ts`);
}

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
