/**
 * `npm run chaos -- [--items N] [--seed N] [--minutes N]`: one bulk job over real processes, which are killed (kill -9) and
 * started again all the while, by a script that follows from the seed. The disk of the object store is full once.
 * Ends with 0 where every item has exactly one result, the right one, and every count says so.
 */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Random, seededRandom } from "@atelier/core";
import { TEST_BUNDLE } from "@atelier/worker/testing/test-bundle";
import { freePorts } from "../support/free-ports.ts";
import { KillableService } from "../support/killable-service.ts";
import { startNats } from "../support/nats.ts";
import { startRedis } from "../support/redis.ts";
import { SmallDisk } from "./small-disk.ts";

const { values } = parseArgs({
  options: {
    items: { type: "string", default: "10000" },
    seed: { type: "string", default: "1" },
    minutes: { type: "string", default: "20" },
    speed: { type: "string", default: "4" },
    help: { type: "boolean", short: "h", default: false },
  },
});
if (values.help) {
  console.log(`npm run chaos -- [options]

  --items 10000   pictures of the job
  --seed 1        which faults, and when
  --minutes 20    how long it may take
  --speed 4       how many times as fast the simulated devices' time passes: faster leaves less time for faults`);
  process.exit(0);
}
const items = Number(values.items);
const random = seededRandom(Number(values.seed));
const untilMs = Date.now() + Number(values.minutes) * 60_000;
const startedMs = Date.now();

/** Shorter than what a cluster has, so that many leases run out within the run. */
const LEASE_MS = 4_000;
/** Longer than usage is gathered before it is booked. */
const SETTLED_MS = 6_000;
/** Of items that are made a second time, to compare. */
const SAMPLE = 100;
const SHAPE = { width: 128, height: 128, steps: 8 };

const faults = new Map<string, number>();
const disk = await SmallDisk.make(Math.max(64, Math.ceil(items / 40)));
const nats = await startNats();
const redis = await startRedis();
const ports = await freePorts(5);
const [jobsPort, ...others] = ports as [number, ...number[]];
const gatewayUrls = others.slice(0, 2).map((port) => `http://127.0.0.1:${port}`);
const workerAddresses = others.slice(2).map((port) => `127.0.0.1:${port}`);
const storage = {
  ATELIER_QUEUE: nats.url,
  ATELIER_OBJECTS: `file:${disk.folder}`,
  ATELIER_QUEUE_LEASE_MS: String(LEASE_MS),
  ATELIER_QUEUE_TIMEOUT_MS: String(LEASE_MS / 2),
  ATELIER_LOG_LEVEL: "warn",
};
const token = "chaos-chaos-chaos-chaos";
const gateways = gatewayUrls.map(
  (url, i) =>
    new KillableService(`gateway ${i + 1}`, entryOf("gateway"), {
      ATELIER_LISTEN: url.replace("http://", ""),
      ATELIER_WORKERS: workerAddresses.join(","),
      ATELIER_REDIS: redis.url,
      ATELIER_JOBS: `http://127.0.0.1:${jobsPort}`,
      ATELIER_INTERNAL_TOKEN: token,
      ATELIER_LOG_LEVEL: "warn",
    }),
);
const workers = workerAddresses.map(
  (address, i) =>
    new KillableService(`worker ${i + 1}`, entryOf("worker"), {
      ...storage,
      ATELIER_WORKER_ID: `worker-${i + 1}`,
      ATELIER_WORKER_LISTEN: address,
      ATELIER_MODELS: TEST_BUNDLE,
      ATELIER_DEVICE: "simulated",
      ATELIER_SIMULATED_GPU: "a10",
      ATELIER_SIMULATED_SPEED: values.speed,
      // A worker that is killed again and again is no fault of an item's.
      ATELIER_ITEM_ATTEMPTS_MAX: "50",
    }),
);
const jobs = new KillableService("jobs", entryOf("jobs"), {
  ...storage,
  ATELIER_JOBS_LISTEN: `127.0.0.1:${jobsPort}`,
  ATELIER_GATEWAY: gatewayUrls.join(","),
  ATELIER_INTERNAL_TOKEN: token,
});
const ours = [...workers, jobs, ...gateways];

try {
  await Promise.all(ours.map((service) => service.start()));
  await until("the gateways see their workers", async () => (await ask("/readyz")).ok);
  const before = await booked();
  const job = await submit();
  note(`job ${job} of ${items} items submitted`);
  const ended = run(job);
  await harm(ended.signal);
  await ended.job;
  await check(job, before);
} finally {
  await Promise.all(ours.map((service) => service.kill()));
  await nats.stop();
  await redis.stop();
  await disk.remove();
}
process.exit(0);

/** Looks at the job until it is done. */
function run(id: string): { readonly job: Promise<unknown>; readonly signal: AbortSignal } {
  const over = new AbortController();
  let told = 0;
  const job: Promise<unknown> = until("the job ends", async () => {
    const seen = await showJob(id);
    if (seen === undefined) return false;
    const done = seen.counts["done"] ?? 0;
    if (done - told >= items / 10) {
      told = done;
      note(`${done} of ${items} done`);
    }
    return seen.status === "done";
  }).finally(() => over.abort());
  return { job, signal: over.signal };
}

/** Fault after fault until the job has ended; the full disk comes in the middle of the first minute. */
async function harm(ended: AbortSignal): Promise<void> {
  let filled = !disk.canBeFilled;
  if (filled) note("the disk is not filled: no tmpfs can be mounted here");
  while (!ended.aborted) {
    await sleep(1_000 + 4_000 * random.next());
    if (ended.aborted) return;
    if (!filled && Date.now() - startedMs > 20_000) {
      filled = true;
      count("disk full");
      const free = await disk.fill();
      await sleep(8_000);
      await free();
      note("the disk has room again");
      continue;
    }
    const victim = draw(random, [...workers, ...workers, jobs, gateways[0]!, gateways[1]!, nats] as const);
    const name = victim instanceof KillableService ? victim.name : "nats-server";
    count(`kill -9 ${name}`);
    await victim.kill();
    await sleep(2_000 * random.next());
    await victim.start();
  }
}

async function submit(): Promise<string> {
  const rows = Array.from({ length: items }, (_, i) => `sku-${i},"red mug, number ${i}"\n`).join("");
  const options = new URLSearchParams({
    name: "chaos",
    template: JSON.stringify({ prompt: "{product}, 白色背景", seed: 7, defaults: SHAPE }),
  });
  const answer = await ask(`/v1/jobs?${options}`, {
    method: "POST",
    headers: { "content-type": "text/csv", "idempotency-key": "chaos" },
    body: `sku,product\n${rows}`,
  });
  const body = (await answer.json()) as { id: string };
  if (!answer.ok) throw new Error(`submission: ${answer.status} ${JSON.stringify(body)}`);
  return body.id;
}

interface ManifestLine {
  readonly index: number;
  readonly prompt: string;
  readonly negative_prompt: string;
  readonly seed: number;
  readonly state: string;
  readonly sha256: string;
  readonly object_key: string;
  readonly file: string;
}

/** @throws naming everything that is not as it has to be. */
async function check(id: string, before: number): Promise<void> {
  const wrong: string[] = [];
  const expect = (holds: boolean, what: string) => {
    if (!holds) wrong.push(what);
  };
  // Once more, so that what is shown is counted from the log and not remembered.
  await jobs.kill();
  await jobs.start();
  const seen = (await until("the job is shown again", () => showJob(id)))!;
  expect(seen.counts["done"] === items, `counts are ${JSON.stringify(seen.counts)}`);

  const text = await (await ask(`/v1/jobs/${id}/manifest`)).text();
  const manifest = text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as ManifestLine);
  expect(manifest.length === items, `the manifest has ${manifest.length} lines`);
  expect(new Set(manifest.map(({ index }) => index)).size === items, "the manifest names an item twice");
  expect(new Set(manifest.map(({ file }) => file)).size === items, "the manifest names a file twice");
  expect(
    manifest.every(({ state }) => state === "done"),
    "the manifest has items that are not done",
  );

  const folder = join(disk.folder, "jobs", id, "pictures");
  const names = (await readdir(folder)).sort();
  expect(names.length === items, `there are ${names.length} pictures`);
  const digests = new Set<string>();
  let matching = 0;
  for (const line of manifest) {
    const made = digest(await readFile(join(disk.folder, line.object_key)));
    digests.add(made);
    if (made === line.sha256) matching++;
  }
  expect(digests.size === items, `there are ${digests.size} distinct pictures`);
  expect(matching === items, `${matching} pictures are those that their line of the manifest says`);

  let same = 0;
  for (let i = 0; i < Math.min(SAMPLE, items); i++) {
    const line = manifest[Math.floor((i * items) / Math.min(SAMPLE, items))]!;
    const again = await ask("/v1/generations", {
      method: "POST",
      headers: { "content-type": "application/json", accept: "image/png", "cache-control": "no-store" },
      body: JSON.stringify({ prompt: line.prompt, negative_prompt: line.negative_prompt, seed: line.seed, ...SHAPE }),
    });
    if (digest(Buffer.from(await again.arrayBuffer())) === line.sha256) same++;
  }
  expect(same === Math.min(SAMPLE, items), `${same} of ${SAMPLE} pictures made a second time are the same`);

  const sampled = Math.min(SAMPLE, items);
  await until("what was used is booked", async () => (await booked()) - before >= items + sampled).catch(() => {});
  await sleep(SETTLED_MS); // what comes twice would come now
  const images = (await booked()) - before - sampled;
  expect(images === items, `${images} pictures were booked`);
  for (const { name, unasked } of ours) expect(unasked.length === 0, `${name} ended by itself: ${unasked[0]}`);

  const redelivered = (await deliveries(id)).filter((attempts) => attempts > 1).length;
  const minutes = (Date.now() - startedMs) / 60_000;
  console.log(`\n${[...faults].map(([what, times]) => `${times} x ${what}`).join(", ")}`);
  console.log(
    `${items} items in ${minutes.toFixed(1)} min: ${digests.size} distinct pictures, ${manifest.length} manifest lines, ` +
      `${same} of ${sampled} the same when made again, ${images} booked, ${redelivered} delivered more than once`,
  );
  for (const what of wrong) console.log(`WRONG: ${what}`);
  const kills = [...faults.values()].reduce((sum, times) => sum + times, 0);
  const ratio = digests.size / items;
  console.log(JSON.stringify({ chaos: "jobs", seed: Number(values.seed), items, ratio, faults: kills, wrong }));
  if (wrong.length > 0) process.exitCode = 1;
}

/** How often each item was delivered until it was done. */
async function deliveries(id: string): Promise<readonly number[]> {
  const attempts: number[] = [];
  for (let from = 0; from < items; from += 32) {
    const some = Array.from({ length: Math.min(32, items - from) }, (_, i) => ask(`/v1/jobs/${id}/items/${from + i}`));
    for (const answer of await Promise.all(some)) {
      attempts.push(((await answer.json()) as { result: { attempts: number } }).result.attempts);
    }
  }
  return attempts;
}

async function booked(): Promise<number> {
  const answer = await ask("/v1/usage");
  return ((await answer.json()) as { total: { images: number } }).total.images;
}

interface JobSeen {
  readonly status: string;
  readonly counts: Readonly<Record<string, number>>;
}

/** Undefined while nobody answers. */
async function showJob(id: string): Promise<JobSeen | undefined> {
  const answer = await ask(`/v1/jobs/${id}`).catch(() => undefined);
  return answer?.ok ? ((await answer.json()) as JobSeen) : undefined;
}

/** Through the gateway that answers. */
async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  let last: unknown;
  for (const url of gatewayUrls) {
    try {
      const answer = await fetch(url + path, { ...init, signal: AbortSignal.timeout(60_000) });
      if (answer.status < 500) return answer;
      last = new Error(`${url}${path}: ${answer.status} ${await answer.text()}`);
    } catch (error) {
      last = error;
    }
  }
  throw last;
}

async function until<T>(what: string, look: () => Promise<T>): Promise<T> {
  for (;;) {
    const found = await look().catch(() => undefined);
    if (found) return found;
    if (Date.now() > untilMs) throw new Error(`${what}: not within ${values.minutes} minutes`);
    await sleep(500);
  }
}

function count(what: string): void {
  faults.set(what, (faults.get(what) ?? 0) + 1);
  note(what);
}

function note(what: string): void {
  console.log(`${((Date.now() - startedMs) / 1_000).toFixed(1).padStart(7)} s  ${what}`);
}

function draw<T>(from: Random, choices: readonly T[]): T {
  return choices[Math.floor(from.next() * choices.length)]!;
}

function entryOf(service: string): string {
  return join(import.meta.dirname, `../../services/${service}/src/main.ts`);
}

function digest(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
