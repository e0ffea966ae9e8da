import { type ChildProcess, fork } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SMALL_HEAP } from "@atelier/lifecycle";
import { type SpawnedWorker, spawnWorker } from "@atelier/worker/testing/spawn-worker";
import {
  type Bench,
  count,
  type Goal,
  otherLoad,
  percentile,
  printGoals,
  printTable,
  round,
  warnIfBusy,
} from "./support/bench.ts";
import { end } from "./support/child.ts";
import { type JobSeen, type JobsPlace, JobsSystem, openPlace } from "./support/jobs-system.ts";
import { peakMemoryBytes, processorSeconds } from "./support/peak-memory.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const zeroEngine = join(import.meta.dirname, "support/zero-engine.ts");
const zeroPuller = join(import.meta.dirname, "support/zero-puller.ts");
/** Of the items whose pictures are read back. */
const READ_BACK = 500;
const LEASE_MS = 30_000;

/**
 * Bulk jobs over real processes: a gateway, the jobs service, NATS with its streams in files, and workers.
 *
 * First with an engine that costs nothing: what a job's items cost beside their pictures. Then with simulated GPUs, whose
 * time passes as many times as fast: whether they wait for work, and what somebody at the counter notices of it all.
 */
export const bench: Bench = {
  description: "bulk jobs: items a second without an engine; simulated GPUs kept busy; interactive p99 beside a job",
  options: {
    items: { default: "100000", help: "of the job without an engine; 0 leaves that out" },
    pullers: { default: "2", help: "worker-side processes without an engine" },
    held: { default: "128", help: "items that each of those may have at one time" },
    objects: {
      default: tmpdir(),
      help: "folder for the pictures of the job without an engine: each is synced to its disk",
    },
    "simulated-items": { default: "400", help: "of the job on simulated GPUs; 0 leaves that and the next out" },
    workers: { default: "2", help: "simulated GPUs" },
    gpu: { default: "a10", help: "which GPU is simulated" },
    // What our own threads take between two steps passes no faster: at 4 it is four times the share that it is.
    speed: { default: "1", help: "how many times as fast its time passes" },
    requests: { default: "60", help: "interactive requests on idle workers, and as many beside a job" },
  },
  async run(options) {
    const load = otherLoad();
    warnIfBusy(load);
    const items = Number(options["items"]);
    const simulated = Number(options["simulated-items"]);
    const cost = items > 0 ? await withoutEngine(items, options) : undefined;
    const busy = simulated > 0 ? await onSimulated(simulated, options) : undefined;
    return report({ cost, busy }, load);
  },
};

interface Cost {
  readonly items: number;
  readonly submitMs: number;
  /** From the submission's first byte to the job's end. */
  readonly allMs: number;
  readonly processes: readonly { readonly name: string; readonly peakBytes: number; readonly processorS: number }[];
}

async function withoutEngine(items: number, options: Readonly<Record<string, string>>): Promise<Cost> {
  const place = await openPlace({ within: options["objects"]! });
  const engine = fork(zeroEngine, ["16", "0"], { stdio: ["ignore", 2, 2, "ipc"] });
  const pullers: ChildProcess[] = [];
  try {
    const [{ address }] = (await once(engine, "message")) as [{ address: string }];
    const { ATELIER_QUEUE: queue, ATELIER_OBJECTS: objects } = place.env;
    for (let i = 0; i < count(options, "pullers"); i++) {
      const args = [queue!, objects!, "zero", options["held"]!, String(LEASE_MS)];
      const puller = fork(zeroPuller, args, { stdio: ["ignore", 2, 2, "ipc"], execArgv: [...SMALL_HEAP] });
      pullers.push(puller);
      await once(puller, "message");
    }
    const system = await JobsSystem.start(place, [address]);
    try {
      const sheet = sheetOf(items);
      const startedAtMs = performance.now();
      const { id } = await system.submit(sheet, { name: "bench" });
      const submitMs = performance.now() - startedAtMs;
      const job = await system.until(id, ended, progressLine(items));
      const allMs = performance.now() - startedAtMs;
      const pids = { gateway: system.gateway.pid, jobs: system.jobsPid, "nats-server": place.nats.pid };
      const processes = [
        ...Object.entries(pids),
        ...pullers.map(({ pid }, i) => [`puller ${i + 1}`, pid!] as const),
      ].map(([name, pid]) => ({ name, peakBytes: peakMemoryBytes(pid), processorS: processorSeconds(pid) }));
      await checkPictures(place, job, items);
      return { items, submitMs, allMs, processes };
    } finally {
      await system.stop();
    }
  } finally {
    await Promise.all(pullers.map((puller) => end(puller)));
    await end(engine);
    await place.stop();
  }
}

/** One line of JSON for each item. */
function sheetOf(items: number, fields: object = {}): string {
  return Array.from({ length: items }, (_, i) => {
    return `${JSON.stringify({ sku: `sku-${i}`, prompt: `a red mug, number ${i}, on white`, seed: i, ...fields })}\n`;
  }).join("");
}

/** Every item is done, has a picture of its own, and the right one. @throws where one does not. */
async function checkPictures(place: JobsPlace, { id, counts }: JobSeen, items: number): Promise<void> {
  if (counts["done"] !== items) throw new Error(`${items} items came to ${JSON.stringify(counts)}`);
  const folder = join(place.folder, "jobs", id, "pictures");
  const names = (await readdir(folder)).sort();
  if (names.length !== items) throw new Error(`${items} items have ${names.length} pictures`);
  const every = Math.max(1, Math.floor(items / READ_BACK));
  for (let index = 0; index < items; index += every) {
    const made = createHash("sha256").update(`${id}.${index}.0`).digest();
    if (!made.equals(await readFile(join(folder, names[index]!))))
      throw new Error(`item ${index} has another's picture`);
  }
}

interface Busy {
  readonly items: number;
  readonly allMs: number;
  /** Of the devices' time in which there was enough to do for all of them: how much they denoised. */
  readonly busyRatio: number;
  readonly idleMs: readonly number[];
  readonly besideMs: readonly number[];
}

async function onSimulated(items: number, options: Readonly<Record<string, string>>): Promise<Busy> {
  const place = await openPlace();
  const workers: SpawnedWorker[] = [];
  try {
    for (let i = 0; i < count(options, "workers"); i++) {
      workers.push(
        spawnWorker({
          ...place.env,
          ATELIER_WORKER_ID: `simulated-${i + 1}`,
          ATELIER_MODELS: embeddedModel,
          ATELIER_DEVICE: "simulated",
          ATELIER_SIMULATED_GPU: options["gpu"]!,
          ATELIER_SIMULATED_SPEED: options["speed"]!,
        }),
      );
    }
    const addresses: string[] = [];
    for (const worker of workers) {
      addresses.push((await worker.said("listening")).address);
      await worker.said("ready");
    }
    const system = await JobsSystem.start(place, addresses);
    try {
      const shape = { width: 512, height: 512, steps: 20 };
      // Every shape and batch size was met once: step times are learned, code is compiled.
      const warm = await system.submit(sheetOf(16 * workers.length, shape), { name: "warm-up" });
      await system.until(warm.id, ended);

      const startedAtMs = performance.now();
      const { id } = await system.submit(sheetOf(items, shape), { name: "bench" });
      // Between these the devices could work without a break; before and after, some have not enough to do.
      await system.until(id, atLeast(0.05 * items));
      const from = { atMs: performance.now(), busyS: await busySeconds(workers) };
      await system.until(id, atLeast(0.9 * items), progressLine(items));
      const to = { atMs: performance.now(), busyS: await busySeconds(workers) };
      const job = await system.until(id, ended);
      const allMs = performance.now() - startedAtMs;
      if (job.counts["done"] !== items) throw new Error(`${items} items came to ${JSON.stringify(job.counts)}`);
      const busyRatio = ((to.busyS - from.busyS) * 1_000) / ((to.atMs - from.atMs) * workers.length);

      const ask = () => interactive(system.gateway.url, count(options, "requests"), shape);
      await interactive(system.gateway.url, 5, shape);
      const idleMs = await ask();
      const saturating = await system.submit(sheetOf(100_000, shape), { name: "beside" });
      await system.until(saturating.id, atLeast(8 * workers.length));
      const besideMs = await ask();
      await system.cancel(saturating.id);
      return { items, allMs, busyRatio, idleMs, besideMs };
    } finally {
      await system.stop();
    }
  } finally {
    await Promise.all(workers.map((worker) => end(worker.process)));
    await place.stop();
  }
}

function ended({ status }: JobSeen): boolean {
  return status === "done";
}

function atLeast(done: number): (job: JobSeen) => boolean {
  return ({ counts }) => (counts["done"] ?? 0) >= done;
}

function progressLine(items: number): (job: JobSeen) => void {
  if (!process.stderr.isTTY) return () => {};
  return ({ counts }) => {
    process.stderr.write(`\r${counts["done"] ?? 0} of ${items} items   `);
  };
}

/** Seconds in which the devices' denoise lanes ran, of all workers together. */
async function busySeconds(workers: readonly SpawnedWorker[]): Promise<number> {
  let seconds = 0;
  for (const worker of workers) {
    const { metricsAddress } = await worker.said("listening");
    const metrics = await (await fetch(`http://${metricsAddress}/metrics`)).text();
    seconds += Number(/^atelier_worker_denoise_busy_seconds_total(?:\{.*\})? (\S+)$/m.exec(metrics)?.[1]);
  }
  return seconds;
}

let drawn = 0;

/** As a shopper: one after another, with a moment between in which a job gets its foot in the door. */
async function interactive(url: string, requests: number, shape: object): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i < requests; i++) {
    const startedAtMs = performance.now();
    const answer = await fetch(`${url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json", "cache-control": "no-store", accept: "image/png" },
      body: JSON.stringify({ prompt: "a blue mug", seed: drawn++, ...shape }),
    });
    if (!answer.ok) throw new Error(`${url} answered ${answer.status}: ${await answer.text()}`);
    await answer.arrayBuffer();
    times.push(performance.now() - startedAtMs);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return times;
}

const MEGABYTE = 1e6;
const MEMORY_BYTES_MAX = 300 * MEGABYTE;

function report({ cost, busy }: { cost: Cost | undefined; busy: Busy | undefined }, load: number) {
  const goals: Goal[] = [];
  let rate = 0;
  if (cost !== undefined) {
    rate = (cost.items / cost.allMs) * 1_000;
    console.log(
      `\n${cost.items} items without an engine, ${round(cost.allMs / 1_000, 1)} s from submission to the job's end,`,
    );
    console.log(`${round(cost.submitMs / 1_000, 1)} s of them until it was accepted:`);
    printTable([
      ["process", "peak memory, MB", "processor, s", "ms an item"],
      ...cost.processes.map(({ name, peakBytes, processorS }) => [
        name,
        peakBytes / MEGABYTE,
        processorS.toFixed(1),
        ((processorS / cost.items) * 1_000).toFixed(3),
      ]),
    ]);
    goals.push({ name: "items a second, submission to end", value: rate, atLeast: 3_000 });
    for (const { name, peakBytes } of cost.processes) {
      const value = peakBytes / MEGABYTE;
      goals.push({ name: `peak memory of ${name}, MB`, value, atMost: MEMORY_BYTES_MAX / MEGABYTE });
    }
  }
  const p99 = busy && percentile(busy.besideMs, 0.99) / percentile(busy.idleMs, 0.99);
  if (busy !== undefined) {
    console.log(`\n${busy.items} items on simulated GPUs, ${round(busy.allMs / 1_000, 1)} s.`);
    console.log(`${busy.idleMs.length} interactive requests, ms, idle and beside a job that never ends:`);
    printTable([
      ["workers", "p50", "p90", "p99"],
      ["idle", ...[0.5, 0.9, 0.99].map((p) => percentile(busy.idleMs, p))],
      ["beside a job", ...[0.5, 0.9, 0.99].map((p) => percentile(busy.besideMs, p))],
    ]);
    goals.push({ name: "share of time that the GPUs denoised", value: busy.busyRatio, atLeast: 0.97 });
    goals.push({ name: "interactive p99 beside a job over idle", value: p99!, atMost: 1.5 });
  }
  printGoals(goals);
  return {
    // Of the first part; of the second where the first is left out.
    ratio: round(cost === undefined ? (busy?.busyRatio ?? 0) / 0.97 : rate / 3_000),
    goal: 1,
    items_per_second: round(rate, 0),
    items: cost?.items ?? 0,
    submit_ms: round(cost?.submitMs ?? 0, 0),
    peak_memory_mb: Object.fromEntries(
      (cost?.processes ?? []).map(({ name, peakBytes }) => [name, round(peakBytes / MEGABYTE, 0)]),
    ),
    processor_ms_per_item: Object.fromEntries(
      (cost?.processes ?? []).map(({ name, processorS }) => [name, round((processorS / cost!.items) * 1_000, 3)]),
    ),
    device_busy: busy && round(busy.busyRatio, 3),
    interactive_p99: p99 && round(p99),
    interactive_ms: busy && {
      idle_p99: round(percentile(busy.idleMs, 0.99), 0),
      beside_p99: round(percentile(busy.besideMs, 0.99), 0),
    },
    load,
  };
}
