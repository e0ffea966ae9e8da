import { availableParallelism } from "node:os";
import { join } from "node:path";
import { PriorityClass } from "@atelier/proto";
import {
  type Bench,
  count,
  type Goal,
  median,
  otherLoad,
  percentile,
  printGoals,
  printTable,
  round,
  warnIfBusy,
} from "./support/bench.ts";
import { mixedRequests, type PictureRequest } from "./support/picture-request.ts";
import { WorkerProcess } from "./support/worker-process.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const SIZE = { width: 256, height: 256 };
const LONG_COUNT = 8;
const LONG: PictureRequest = { ...mixedRequests(1)[0]!, ...SIZE, steps: 50, guidanceScale: 2.5 };
const SHORT: PictureRequest = { ...LONG, steps: 10 };
/** What a shopper asks for, one after another. */
const INTERACTIVE: PictureRequest = { ...LONG, steps: 20 };
/** Kept waiting at one time while interactive requests are timed: the worker never runs dry. */
const BULK_IN_FLIGHT = 16;
/** Longer than any run: a less urgent class gets no turn out of turn. */
const NO_AGEING_MS = "600000";

/**
 * Both orders run on the same worker, so that nothing but the order differs. Run-to-completion is had by asking for the
 * long ones as interactive and for the short one as bulk: it then starts when the last long one has ended.
 */
export const bench: Bench = {
  description: "a short request behind long ones, against run-to-completion; interactive p99 beside bulk against idle",
  options: {
    rounds: { default: "5", help: "rounds of each order, in turns; the median counts" },
    requests: { default: "100", help: "interactive requests on the idle worker, and as many beside bulk ones" },
    threads: { default: String(Math.min(4, availableParallelism())), help: "CPU threads" },
    model: { default: embeddedModel, help: "model bundle" },
  },
  async run(options) {
    const threads = count(options, "threads");
    const rounds = count(options, "rounds");
    const requests = count(options, "requests");
    const load = otherLoad();
    warnIfBusy(load);
    const model = options["model"]!;
    const turns = await withWorker({ model, threads, env: { ATELIER_AGEING_MS: NO_AGEING_MS } }, async (worker) => {
      await shortBehindLong(worker, "stepwise"); // every batch size met, and its time learned
      const done: { stepwise: Turn; completion: Turn }[] = [];
      for (let i = 0; i < rounds; i++) {
        const completion = await shortBehindLong(worker, "run-to-completion");
        done.push({ completion, stepwise: await shortBehindLong(worker, "stepwise") });
      }
      return done;
    });
    const beside = await withWorker({ model, threads }, (worker) => interactiveBesideBulk(worker, requests));
    return report(turns, beside, { threads, load });
  },
};

interface Turn {
  /** From the short request to its picture. */
  readonly shortMs: number;
  /** From the first long request to the last picture of all. */
  readonly allMs: number;
}

async function withWorker<T>(
  options: Parameters<typeof WorkerProcess.start>[0],
  use: (worker: WorkerProcess) => Promise<T>,
): Promise<T> {
  const worker = await WorkerProcess.start(options);
  try {
    return await use(worker);
  } finally {
    await worker.stop();
  }
}

let drawn = 0;
const next = (request: PictureRequest): PictureRequest => ({ ...request, seed: drawn++ });

async function shortBehindLong(worker: WorkerProcess, order: "stepwise" | "run-to-completion"): Promise<Turn> {
  const completion = order === "run-to-completion";
  const startedMs = performance.now();
  const long = Array.from({ length: LONG_COUNT }, () =>
    worker.drawPicture(next(LONG), completion ? PriorityClass.INTERACTIVE : PriorityClass.STANDARD),
  );
  await new Promise((resolve) => setTimeout(resolve, 100)); // the long ones are under way
  const askedMs = performance.now();
  await worker.drawPicture(next(SHORT), completion ? PriorityClass.BULK : PriorityClass.STANDARD);
  const shortMs = performance.now() - askedMs;
  await Promise.all(long);
  return { shortMs, allMs: performance.now() - startedMs };
}

interface Beside {
  readonly idleMs: readonly number[];
  readonly besideMs: readonly number[];
  readonly bulkDrawn: number;
}

async function interactiveBesideBulk(worker: WorkerProcess, requests: number): Promise<Beside> {
  const ask = async () => {
    const times: number[] = [];
    for (let i = 0; i < requests; i++) {
      const startedMs = performance.now();
      await worker.drawPicture(next(INTERACTIVE), PriorityClass.INTERACTIVE);
      times.push(performance.now() - startedMs);
      await new Promise((resolve) => setTimeout(resolve, 20)); // bulk work gets a foot in the door each time
    }
    return times;
  };
  await worker.drawPicture(next(INTERACTIVE));
  const idleMs = await ask();
  let stop = false;
  let bulkDrawn = 0;
  const bulk = mixedRequests(64);
  const clients = Array.from({ length: BULK_IN_FLIGHT }, async (_, i) => {
    for (let k = i; !stop; k++) {
      await worker.drawPicture(next(bulk[k % bulk.length]!), PriorityClass.BULK);
      bulkDrawn += 1;
    }
  });
  await new Promise((resolve) => setTimeout(resolve, 3000)); // saturated, every shape met
  bulkDrawn = 0;
  const besideMs = await ask();
  const result = { idleMs, besideMs, bulkDrawn };
  stop = true;
  await Promise.all(clients);
  return result;
}

function report(
  turns: readonly { stepwise: Turn; completion: Turn }[],
  { idleMs, besideMs, bulkDrawn }: Beside,
  { threads, load }: { threads: number; load: number },
) {
  const sooner = median(turns.map(({ stepwise, completion }) => completion.shortMs / stepwise.shortMs));
  const throughput = median(turns.map(({ stepwise, completion }) => completion.allMs / stepwise.allMs));
  const p99Ratio = percentile(besideMs, 0.99) / percentile(idleMs, 0.99);
  console.log(`one ${SHORT.steps}-step request behind ${LONG_COUNT} of ${LONG.steps} steps, ms, ${threads} threads:`);
  printTable([
    ["round", "short: run-to-completion", "stepwise", "all: run-to-completion", "stepwise"],
    ...turns.map(({ stepwise, completion }, i) => [
      String(i + 1),
      completion.shortMs,
      stepwise.shortMs,
      completion.allMs,
      stepwise.allMs,
    ]),
  ]);
  console.log(`\n${idleMs.length} interactive requests, ms, idle and beside ${BULK_IN_FLIGHT} bulk ones in flight:`);
  printTable([
    ["worker", "p50", "p90", "p99"],
    ["idle", ...[0.5, 0.9, 0.99].map((p) => percentile(idleMs, p))],
    ["beside bulk", ...[0.5, 0.9, 0.99].map((p) => percentile(besideMs, p))],
  ]);
  console.log(`bulk pictures made meanwhile: ${bulkDrawn}`);
  const goals: readonly Goal[] = [
    { name: "the short one sooner, times", value: sooner, atLeast: 5 },
    { name: "throughput over run-to-completion's", value: throughput, atLeast: 0.97 },
    { name: "interactive p99 beside bulk over idle", value: p99Ratio, atMost: 1.5 },
  ];
  printGoals(goals);
  return {
    ratio: round(sooner),
    goal: 5,
    throughput: round(throughput, 3),
    goal_throughput: 0.97,
    interactive_p99: round(p99Ratio),
    goal_interactive_p99: 1.5,
    interactive_ms: {
      idle_p50: round(percentile(idleMs, 0.5), 0),
      idle_p99: round(percentile(idleMs, 0.99), 0),
      beside_p50: round(percentile(besideMs, 0.5), 0),
      beside_p99: round(percentile(besideMs, 0.99), 0),
    },
    bulk_pictures: bulkDrawn,
    threads,
    rounds: turns.length,
    load,
  };
}
