import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Bench, count, median, otherLoad, printGoals, printTable, round } from "./support/bench.ts";
import { drawAll, mixedRequests, type PictureRequest } from "./support/picture-request.ts";
import { WorkerProcess } from "./support/worker-process.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
/** What the worker's resident memory may grow by. */
const GROWTH_MAX = 0.05;
const IN_FLIGHT = 8;
const PROMPTS = Array.from({ length: 40 }, (_, i) => `a mug, number ${i}`);
/** Steps of a device that takes next to no time; the rest of a request is as long as ever. */
const SIMULATED_SPEED = 500;

const SAMPLE_MS = 250;

/**
 * A worker's resident memory (VmRSS) in the first and in the last quarter of many mixed requests, the median of samples:
 * garbage is collected when it pays, so that a single look may be a tenth higher or lower than the next. Before the first look it has served a share
 * of them: every size is allocated, every lane open, every cache full, and the heap has found its size.
 */
export const bench: Bench = {
  description: "growth of a worker's resident memory over many requests, on the CPU and on the simulated device",
  options: {
    requests: { default: "200", help: "requests on the CPU" },
    simulated: { default: "10000", help: "requests on the simulated device" },
    threads: { default: "2", help: "CPU threads" },
    model: { default: embeddedModel, help: "model bundle" },
  },
  async run(options) {
    const threads = count(options, "threads");
    const model = options["model"]!;
    const load = otherLoad();
    const cpu = await grow(
      { model, threads, env: {} },
      { requests: count(options, "requests"), warmUps: Math.min(100, count(options, "requests")), steps: 4 },
    );
    const simulatedEnv = { ATELIER_DEVICE: "simulated", ATELIER_SIMULATED_SPEED: String(SIMULATED_SPEED) };
    const simulatedRequests = { requests: count(options, "simulated"), warmUps: 8000, steps: 2 };
    const simulated = await grow({ model, threads, env: simulatedEnv }, simulatedRequests);

    console.log("resident memory of the worker's process, MiB:");
    printTable([
      ["device", "requests", "1st quarter", "3rd", "last", "growth %", "requests/s"],
      rowOf("cpu", cpu),
      rowOf("simulated", simulated),
    ]);
    printGoals([
      { name: "growth on the CPU", value: cpu.growth, atMost: GROWTH_MAX },
      { name: "growth on the simulated device", value: simulated.growth, atMost: GROWTH_MAX },
    ]);
    return {
      // 1 or more where neither has grown by more than it may.
      ratio: round((1 + GROWTH_MAX) / (1 + Math.max(cpu.growth, simulated.growth)), 3),
      goal: 1,
      growth_cpu: round(cpu.growth, 4),
      growth_simulated: round(simulated.growth, 4),
      rss_cpu_mib: round(cpu.afterMib, 1),
      rss_simulated_mib: round(simulated.afterMib, 1),
      requests_cpu: cpu.requests,
      requests_simulated: simulated.requests,
      threads,
      load,
    };
  },
};

interface Growth {
  readonly requests: number;
  readonly beforeMib: number;
  readonly halfWayMib: number;
  readonly afterMib: number;
  readonly growth: number;
  readonly perSecond: number;
}

async function grow(
  start: Parameters<typeof WorkerProcess.start>[0],
  { requests, warmUps, steps }: { requests: number; warmUps: number; steps: number },
): Promise<Growth> {
  const worker = await WorkerProcess.start(start);
  try {
    const draw = async (picture: PictureRequest) => (await worker.drawPicture(picture)).images[0]!.data;
    const pictures = mixedRequests(warmUps + requests).map((picture, i) => ({
      ...picture,
      steps,
      // As many texts as the warm-up has: the cache of embeddings fills by design, up to a limit of its own.
      prompt: PROMPTS[i % PROMPTS.length]!,
    }));
    await drawAll(pictures.slice(0, warmUps), IN_FLIGHT, draw);
    const quarters: number[] = [];
    let ms = 0;
    for (let quarter = 0; quarter < 4; quarter++) {
      const from = warmUps + Math.ceil((requests * quarter) / 4);
      const to = warmUps + Math.ceil((requests * (quarter + 1)) / 4);
      const samples = [residentMib(worker.pid)];
      const sampling = setInterval(() => samples.push(residentMib(worker.pid)), SAMPLE_MS);
      const drawn = await drawAll(pictures.slice(from, to), IN_FLIGHT, draw);
      clearInterval(sampling);
      ms += drawn.ms;
      quarters.push(median(samples));
    }
    const [beforeMib, , halfWayMib, afterMib] = quarters as [number, number, number, number];
    const perSecond = (1000 * requests) / ms;
    return { requests, beforeMib, halfWayMib, afterMib, growth: afterMib / beforeMib - 1, perSecond };
  } finally {
    await worker.stop();
  }
}

/** The middle of several looks, after a moment in which garbage may be collected. */
function residentMib(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;
}

function rowOf(device: string, { requests, beforeMib, halfWayMib, afterMib, growth, perSecond }: Growth) {
  const mib = [beforeMib, halfWayMib, afterMib].map((value) => value.toFixed(1));
  return [device, requests, ...mib, (100 * growth).toFixed(1), perSecond.toFixed(1)];
}
