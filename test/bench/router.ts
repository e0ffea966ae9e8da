import { fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { spawnWorker } from "@atelier/worker/testing/spawn-worker";
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
import { GatewayProcess } from "./support/gateway-process.ts";
import { type OpenLoop, openLoop } from "./support/open-loop.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const engineEntry = join(import.meta.dirname, "support/zero-engine.ts");
/** So that step times are learned, connections open and code compiled. */
const WARM_UP_S = 6;
const PIXELS = { width: 512, height: 512 };

/**
 * What gateway and gRPC add. A gateway process and a worker process whose engine holds each request for a fixed time and
 * costs nothing; requests come at a rate of their own (Poisson), so that rate times hold is how many are in flight. Added
 * is what the caller waits beyond what the engine says that it held the request for.
 */
export const bench: Bench = {
  description: "latency added by gateway and gRPC over an engine that costs nothing, at 200 requests in flight",
  options: {
    seconds: { default: "10", help: "of measuring, after a warm-up" },
    "in-flight": { default: "200", help: "requests in flight on average" },
    hold: { default: "1000", help: "milliseconds for which the engine holds each; with in-flight this sets the rate" },
    "worker-rate": { default: "40", help: "requests a second through a real worker, for the second table" },
    bytes: { default: "65536", help: "of a picture" },
  },
  async run(options) {
    const load = otherLoad();
    warnIfBusy(load);
    const holdMs = count(options, "hold");
    const perSecond = (count(options, "in-flight") / holdMs) * 1000;
    const engine = fork(engineEntry, [options["bytes"]!, String(holdMs)], { stdio: ["ignore", 2, 2, "ipc"] });
    try {
      const [{ address }] = (await once(engine, "message")) as [{ address: string }];
      const gateway = await GatewayProcess.start({ workers: [address], env: { ATELIER_IN_FLIGHT_MAX: "4096" } });
      try {
        const ask = (seconds: number, accept: string) =>
          openLoop({
            url: `${gateway.url}/generate`,
            perSecond,
            seconds,
            headers: { accept, "cache-control": "no-store" },
            body: (i) => ({ prompt: `a red mug ${i}`, steps: 20, seed: i, ...PIXELS }),
          });
        await ask(WARM_UP_S, "image/png");
        const picture = await ask(count(options, "seconds"), "image/png");
        const json = await ask(Math.min(3, count(options, "seconds")), "application/json");
        const whole = await throughWorker(count(options, "worker-rate"));
        return report({ picture, json, whole }, { perSecond, holdMs, load });
      } finally {
        await gateway.stop();
      }
    } finally {
      await end(engine);
    }
  },
};

/**
 * The whole way through a real worker process as well: its stages, threads and image encoding, of which nothing is taken
 * off. Its simulated device is so fast that it hardly counts; pictures are small, since their pixels are real.
 */
async function throughWorker(perSecond: number): Promise<OpenLoop> {
  const worker = spawnWorker({
    ATELIER_MODELS: embeddedModel,
    ATELIER_DEVICE: "simulated",
    ATELIER_SIMULATED_SPEED: "1000",
  });
  try {
    const { address } = await worker.said("listening");
    await worker.said("ready");
    const gateway = await GatewayProcess.start({ workers: [address] });
    try {
      const ask = (seconds: number) =>
        openLoop({
          url: `${gateway.url}/generate`,
          perSecond,
          seconds,
          headers: { accept: "image/png", "cache-control": "no-store" },
          body: (i) => ({ prompt: `a red mug ${i % 10}`, steps: 1, seed: i, width: 128, height: 128 }),
        });
      await ask(WARM_UP_S);
      return await ask(5);
    } finally {
      await gateway.stop();
    }
  } finally {
    await end(worker.process);
  }
}

/** Milliseconds beyond what the engine held each request for. */
function addedMs({ answers, failures }: OpenLoop): number[] {
  if (failures.length > 0) throw new Error(`${failures.length} requests failed, the first with ${failures[0]}`);
  return answers.map(({ latencyMs, headers }) => latencyMs - heldMs(String(headers["server-timing"])));
}

function heldMs(serverTiming: string): number {
  const ms = /denoise;dur=([\d.]+)/.exec(serverTiming)?.[1];
  if (ms === undefined) throw new Error(`no denoise time in "${serverTiming}"`);
  return Number(ms);
}

function report(
  { picture, json, whole }: Readonly<Record<"picture" | "json" | "whole", OpenLoop>>,
  { perSecond, holdMs, load }: { perSecond: number; holdMs: number; load: number },
) {
  const added = addedMs(picture);
  const figures = (loop: OpenLoop) => {
    const ms = addedMs(loop);
    return [...[0.5, 0.9, 0.99].map((p) => percentile(ms, p).toFixed(2)), Math.max(...ms).toFixed(2)];
  };
  console.log(`added ms, open loop at ${perSecond} requests/s, each held for ${holdMs} ms:`);
  printTable([
    ["answer", "p50", "p90", "p99", "most", "answers", "in flight"],
    ["picture (Accept: image/png)", ...figures(picture), picture.answers.length, picture.inFlightMean.toFixed(0)],
    ["JSON with base64", ...figures(json), json.answers.length, json.inFlightMean.toFixed(0)],
  ]);
  const late = percentile(picture.lateMs, 0.99);
  console.log(`requests left ${late.toFixed(2)} ms late at p99, which is not counted: the load's own process`);
  const wholeMs = whole.answers.map(({ latencyMs }) => latencyMs);
  console.log(
    "\nthe whole way through a real worker on a simulated device 1000 times as fast as an A10, 1 step of 128x128, ms:",
  );
  printTable([
    ["p50", "p90", "p99", "answers", "failed"],
    [...[0.5, 0.9, 0.99].map((p) => percentile(wholeMs, p).toFixed(2)), wholeMs.length, whole.failures.length],
  ]);
  const p50 = percentile(added, 0.5);
  const p99 = percentile(added, 0.99);
  const goals: Goal[] = [
    { name: "added ms, p50", value: p50, atMost: 2 },
    { name: "added ms, p99", value: p99, atMost: 5 },
  ];
  printGoals(goals);
  return {
    // The worse of the two goals: 1 is just reached.
    ratio: round(Math.min(2 / p50, 5 / p99)),
    goal: 1,
    p50_ms: round(p50),
    p99_ms: round(p99),
    requests_per_second: perSecond,
    in_flight: round(picture.inFlightMean, 0),
    answers: picture.answers.length,
    through_worker_p50_ms: round(percentile(wholeMs, 0.5)),
    load,
  };
}
