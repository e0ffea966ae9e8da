import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import {
  type Bench,
  count,
  type Goal,
  median,
  otherLoad,
  printGoals,
  printTable,
  round,
  warnIfBusy,
} from "./support/bench.ts";
import { DiffusersServer } from "./support/diffusers-server.ts";
import { LoopProcess } from "./support/loop-process.ts";
import { type Draw, drawAll, mixedRequests, type PictureRequest } from "./support/picture-request.ts";
import { WorkerProcess } from "./support/worker-process.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const LONE: PictureRequest = { ...mixedRequests(1)[0]!, width: 256, height: 256, steps: 25, guidanceScale: 2.5 };
/** Below this the sides did different work, and their times say nothing. */
const PSNR_MIN_DB = 40;
/** What the worker's busy ratio looks back on. */
const BUSY_WINDOW_MS = 10_000;
/** Of the slower diffusers server, for comparison only. */
const POOLED_PICTURES = 16;
/** Of pictures per second against diffusers and against the loop, by threads. */
const GOALS: Readonly<Record<number, { diffusers: number; loop: number }>> = {
  2: { diffusers: 2.3, loop: 1.25 },
  4: { diffusers: 3, loop: 1.6 },
};

/**
 * Three servers of the same weights, each in a process of its own, asked in turns by the same client: the worker over
 * gRPC; a one-at-a-time onnxruntime loop; diffusers on torch behind FastAPI. Every time ends with the PNG at the client,
 * and the three pictures of a request are compared.
 */
export const bench: Bench = {
  description: "pictures per second with mixed requests in flight, and a request alone: the worker, a loop, diffusers",
  options: {
    rounds: { default: "3", help: "rounds; in each, every side makes all the pictures. The median counts" },
    pictures: { default: "64", help: "mixed requests of one round" },
    inFlight: { default: "16", help: "requests in flight at one time" },
    lone: { default: "9", help: "requests of the worker and the loop with nothing beside, in turns" },
    threads: { default: String(Math.min(4, availableParallelism())), help: "CPU threads of each side" },
    model: { default: embeddedModel, help: "model bundle of every side" },
  },
  async run(options) {
    const threads = count(options, "threads");
    const model = options["model"]!;
    const load = otherLoad();
    warnIfBusy(load);
    const folder = mkdtempSync(join(tmpdir(), "atelier-bench-"));
    const diffusersOptions = { bundle: model, folder: join(folder, "diffusers"), threads };
    const diffusers = await DiffusersServer.start({ ...diffusersOptions, lock: "main" });
    const pooled = await DiffusersServer.start({ ...diffusersOptions, lock: "thread" });
    const loop = await LoopProcess.start({ bundle: model, threads });
    const worker = await WorkerProcess.start({ model, threads });
    try {
      const sides: Sides = {
        atelier: async (request) => (await worker.drawPicture(request)).images[0]!.data,
        loop: (request) => loop.draw(request),
        diffusers: (request) => diffusers.draw(request),
        "diffusers, pool": (request) => pooled.draw(request),
      };
      const alone = await drawAlone(sides, count(options, "lone"));
      const crowd = await drawCrowd(sides, worker, {
        rounds: count(options, "rounds"),
        requests: mixedRequests(count(options, "pictures")),
        inFlight: count(options, "inFlight"),
      });
      return report({ alone, crowd, threads, load, versions: diffusers.versions });
    } finally {
      await Promise.all([worker.stop(), loop.stop(), diffusers.stop(), pooled.stop()]);
      rmSync(folder, { recursive: true });
    }
  },
};

type Side = "atelier" | "loop" | "diffusers" | "diffusers, pool";
type Sides = Readonly<Record<Side, Draw>>;

interface Alone {
  readonly ateliersMs: readonly number[];
  readonly loopsMs: readonly number[];
}

/** The worker and the loop in turns, one request at a time. */
async function drawAlone({ atelier, loop }: Sides, runs: number): Promise<Alone> {
  const time = async (draw: Draw, i: number) => {
    const startedMs = performance.now();
    await draw({ ...LONE, prompt: `${LONE.prompt} ${i}`, seed: i });
    return performance.now() - startedMs;
  };
  await time(atelier, 0); // both are warm before they are timed
  await time(loop, 0);
  const ateliersMs: number[] = [];
  const loopsMs: number[] = [];
  for (let i = 1; i <= runs; i++) {
    ateliersMs.push(await time(atelier, i));
    loopsMs.push(await time(loop, i));
  }
  return { ateliersMs, loopsMs };
}

interface Round {
  readonly perSecond: Readonly<Record<Exclude<Side, "diffusers, pool">, number>>;
  /** Of the denoise lanes; undefined where the round was too short to tell. */
  readonly busy: number | undefined;
}

interface Crowd {
  readonly rounds: readonly Round[];
  readonly psnrDbMin: number;
  readonly pooledPerSecond: number;
}

async function drawCrowd(
  sides: Sides,
  worker: WorkerProcess,
  { rounds, requests, inFlight }: { rounds: number; requests: readonly PictureRequest[]; inFlight: number },
): Promise<Crowd> {
  // The shapes of this load are met once before they count: onnxruntime allocates, and the worker learns their times.
  await drawAll(requests.slice(0, inFlight), inFlight, sides.atelier);
  await drawAll(requests.slice(0, 4), 1, sides.loop);
  await drawAll(requests.slice(0, 4), 4, sides.diffusers);
  const done: Round[] = [];
  let psnrDbMin = 99;
  for (let i = 0; i < rounds; i++) {
    const samples: { atMs: number; busy: number }[] = [];
    const startedMs = performance.now();
    const watching = setInterval(
      () => samples.push({ atMs: performance.now(), busy: worker.state.denoiseBusyRatio }),
      200,
    );
    const ours = await drawAll(requests, inFlight, sides.atelier);
    clearInterval(watching);
    // The worker tells it of its last ten seconds: only those count in which as much was in flight as may be.
    const full = samples.filter(({ atMs }) => atMs - startedMs >= BUSY_WINDOW_MS && atMs <= ours.lastAskedMs);
    const loop = await drawAll(requests, inFlight, sides.loop);
    const theirs = await drawAll(requests, inFlight, sides.diffusers);
    const perSecond = {
      atelier: (requests.length / ours.ms) * 1000,
      loop: (requests.length / loop.ms) * 1000,
      diffusers: (requests.length / theirs.ms) * 1000,
    };
    done.push({ perSecond, busy: full.length === 0 ? undefined : median(full.map(({ busy }) => busy)) });
    for (let k = 0; k < requests.length && i === 0; k++) {
      psnrDbMin = Math.min(
        psnrDbMin,
        await psnr(ours.files[k]!, loop.files[k]!),
        await psnr(ours.files[k]!, theirs.files[k]!),
      );
    }
  }
  const few = requests.slice(0, POOLED_PICTURES);
  const pooled = await drawAll(few, inFlight, sides["diffusers, pool"]);
  return { rounds: done, psnrDbMin, pooledPerSecond: (few.length / pooled.ms) * 1000 };
}

function report({
  alone,
  crowd,
  threads,
  load,
  versions,
}: {
  alone: Alone;
  crowd: Crowd;
  threads: number;
  load: number;
  versions: object;
}) {
  const { rounds, psnrDbMin, pooledPerSecond } = crowd;
  type Rated = keyof Round["perSecond"];
  const rate = (side: Rated) => median(rounds.map(({ perSecond }) => perSecond[side]));
  const against = (side: Rated) => median(rounds.map(({ perSecond }) => perSecond.atelier / perSecond[side]));
  const loneMs = median(alone.ateliersMs);
  const loopMs = median(alone.loopsMs);
  const told = rounds.flatMap((round) => (round.busy === undefined ? [] : [round.busy]));
  const busy = told.length === 0 ? 0 : median(told);
  console.log(`pictures per second, mixed requests in flight, ${threads} threads each, in turns:`);
  const cell = (value: number) => value.toFixed(2);
  printTable([
    ["round", "atelier", "loop", "diffusers", "lanes busy"],
    ...rounds.map(({ perSecond, busy }, i) => [
      String(i + 1),
      cell(perSecond.atelier),
      cell(perSecond.loop),
      cell(perSecond.diffusers),
      busy === undefined ? "too short" : cell(busy),
    ]),
    ["median", cell(rate("atelier")), cell(rate("loop")), cell(rate("diffusers")), cell(busy)],
  ]);
  console.log(
    `\na request alone, ms, median of ${alone.loopsMs.length}: atelier ${loneMs.toFixed(0)}, loop ${loopMs.toFixed(0)}`,
  );
  if (psnrDbMin < PSNR_MIN_DB)
    throw new Error(`the pictures differ: ${psnrDbMin.toFixed(1)} dB; is one side another model?`);
  console.log(
    `diffusers in FastAPI's pool of threads, which torch is slower in: ${pooledPerSecond.toFixed(2)} pictures/s`,
  );
  const goal = GOALS[threads] ?? GOALS[4]!;
  const goals: readonly Goal[] = [
    { name: "pictures/s over diffusers", value: against("diffusers"), atLeast: goal.diffusers },
    { name: "pictures/s over the loop", value: against("loop"), atLeast: goal.loop },
    { name: "denoise lanes busy", value: busy, atLeast: 0.95 },
    { name: "alone, times the loop's ms", value: loneMs / loopMs, atMost: 1.1 },
  ];
  printGoals(goals);
  return {
    ratio: round(against("diffusers")),
    goal: goal.diffusers,
    ratio_loop: round(against("loop")),
    goal_loop: goal.loop,
    lanes_busy: round(busy, 3),
    alone_over_loop: round(loneMs / loopMs),
    pictures_per_s: { atelier: round(rate("atelier")), loop: round(rate("loop")), diffusers: round(rate("diffusers")) },
    diffusers_pool_per_s: round(pooledPerSecond),
    alone_ms: { atelier: round(loneMs, 0), loop: round(loopMs, 0) },
    psnr_db_min: round(psnrDbMin, 1),
    threads,
    rounds: rounds.length,
    load,
    versions,
  };
}

/** Peak signal-to-noise ratio of two pictures' 8-bit samples, in dB; 99 for equal ones. */
async function psnr(first: Uint8Array, second: Uint8Array): Promise<number> {
  const [a, b] = await Promise.all([first, second].map((file) => sharp(file).removeAlpha().raw().toBuffer()));
  if (a!.length !== b!.length) return 0;
  let squares = 0;
  for (let i = 0; i < a!.length; i++) squares += (a![i]! - b![i]!) ** 2;
  return squares === 0 ? 99 : 10 * Math.log10((255 ** 2 * a!.length) / squares);
}
