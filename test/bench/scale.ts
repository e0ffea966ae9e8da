import { Agent, request as ask } from "node:http";
import { join } from "node:path";
import { spawnWorker } from "@atelier/worker/testing/spawn-worker";
import { type Bench, count, median, otherLoad, printTable, round, warnIfBusy } from "./support/bench.ts";
import { end } from "./support/child.ts";
import { GatewayProcess } from "./support/gateway-process.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const MANY = 4;
const GOAL = 3.9;
/** Step times are learned and the batches full by then. */
const WARM_UP_S = 6;
/** Mixed, and small enough that the pictures' pixels, which are real, cost this machine little. */
const SIZES = [
  [256, 256],
  [192, 256],
  [256, 320],
] as const;
const STEPS = [8, 10, 12];

/** So many worker processes with a simulated A10 each, behind one gateway process; every answer counts once it is here. */
export const bench: Bench = {
  description: "throughput of 4 worker processes against 1 behind a gateway, each with a simulated A10",
  options: {
    seconds: { default: "20", help: "of measuring for each size of fleet, after a warm-up" },
    rounds: { default: "1", help: "of both, in turns; the median counts" },
    "in-flight": { default: "16", help: "requests in flight for each worker" },
  },
  async run(options) {
    const load = otherLoad();
    warnIfBusy(load);
    const seconds = count(options, "seconds");
    const inFlight = count(options, "in-flight");
    const rounds: { one: Throughput; many: Throughput }[] = [];
    for (let i = 0; i < count(options, "rounds"); i++) {
      const one = await throughput({ workers: 1, inFlight, seconds });
      rounds.push({ one, many: await throughput({ workers: MANY, inFlight, seconds }) });
    }
    return report(rounds, { load, inFlight, seconds });
  },
};

interface Throughput {
  readonly perSecond: number;
  readonly answers: number;
  /** Of the workers, by id: how the work was divided. */
  readonly byWorker: ReadonlyMap<string, number>;
}

async function throughput(options: { workers: number; inFlight: number; seconds: number }): Promise<Throughput> {
  const spawned = Array.from({ length: options.workers }, (_, i) =>
    spawnWorker({
      ATELIER_MODELS: embeddedModel,
      ATELIER_WORKER_ID: `a10-${i}`,
      ATELIER_DEVICE: "simulated",
      ATELIER_SIMULATED_GPU: "a10",
    }),
  );
  try {
    const workers = await Promise.all(spawned.map(async (worker) => (await worker.said("listening")).address));
    await Promise.all(spawned.map((worker) => worker.said("ready")));
    const gateway = await GatewayProcess.start({ workers, env: { ATELIER_IN_FLIGHT_MAX: "1024" } });
    try {
      await allReady(gateway.url, options.workers);
      return await measure(gateway.url, options);
    } finally {
      await gateway.stop();
    }
  } finally {
    await Promise.all(spawned.map((worker) => end(worker.process)));
  }
}

async function allReady(url: string, workers: number): Promise<void> {
  for (;;) {
    const { workers_ready } = (await (await fetch(`${url}/readyz`)).json()) as { workers_ready?: number };
    if (workers_ready === workers) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** As many as there are places, each asking again when it has its answer. */
async function measure(
  url: string,
  { workers, inFlight, seconds }: { workers: number; inFlight: number; seconds: number },
) {
  const agent = new Agent({ keepAlive: true });
  const fromMs = performance.now() + WARM_UP_S * 1000;
  const untilMs = fromMs + seconds * 1000;
  const byWorker = new Map<string, number>();
  let answers = 0;
  let asked = 0;
  const client = async () => {
    while (performance.now() < untilMs) {
      const worker = await draw(agent, url, asked++);
      const nowMs = performance.now();
      if (nowMs < fromMs || nowMs >= untilMs) continue;
      answers += 1;
      byWorker.set(worker, (byWorker.get(worker) ?? 0) + 1);
    }
  };
  await Promise.all(Array.from({ length: workers * inFlight }, client));
  agent.destroy();
  return { perSecond: answers / seconds, answers, byWorker };
}

/** Draws one picture and says on which worker. */
function draw(agent: Agent, url: string, i: number): Promise<string> {
  const [width, height] = SIZES[i % SIZES.length]!;
  const steps = STEPS[Math.floor(i / SIZES.length) % STEPS.length]!;
  const body = JSON.stringify({ prompt: `a red mug ${i}`, width, height, steps, seed: i });
  return new Promise((resolve, reject) => {
    const sent = ask(`${url}/generate`, {
      agent,
      method: "POST",
      headers: { "content-type": "application/json", accept: "application/json", "cache-control": "no-store" },
    });
    sent.on("error", reject);
    sent.on("response", (response) => {
      let text = "";
      response.setEncoding("latin1").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", reject);
      response.on("end", () => {
        if (response.statusCode !== 200) return reject(new Error(`${response.statusCode}: ${text.slice(0, 200)}`));
        resolve((JSON.parse(text) as { receipt: { worker_id: string } }).receipt.worker_id);
      });
    });
    sent.end(body);
  });
}

function report(
  rounds: readonly { one: Throughput; many: Throughput }[],
  settings: { load: number; inFlight: number; seconds: number },
) {
  const ratio = median(rounds.map(({ one, many }) => many.perSecond / one.perSecond));
  console.log(`pictures per second, ${settings.inFlight} requests in flight for each worker:`);
  printTable([
    ["round", "1 worker", `${MANY} workers`, "ratio", "by worker"],
    ...rounds.map(({ one, many }, i) => [
      String(i + 1),
      one.perSecond.toFixed(2),
      many.perSecond.toFixed(2),
      (many.perSecond / one.perSecond).toFixed(2),
      [...many.byWorker.values()].join(" "),
    ]),
  ]);
  console.log("The devices are simulated: they take an A10's time by published figures and draw nothing.");
  return {
    ratio: round(ratio),
    goal: GOAL,
    workers: MANY,
    per_second: { one: round(rounds[0]!.one.perSecond), many: round(rounds[0]!.many.perSecond) },
    simulated: true,
    in_flight_for_each: settings.inFlight,
    load: settings.load,
  };
}
