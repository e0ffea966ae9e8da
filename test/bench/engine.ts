import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ImageFormat, Sampler } from "@atelier/proto";
import sharp from "sharp";
import { type Bench, count, median, otherLoad, printTable, round, warnIfBusy } from "./support/bench.ts";
import { DiffusersProcess } from "./support/diffusers-process.ts";
import { WorkerProcess } from "./support/worker-process.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const SIZE = 256;
const STEPS = 25;
const GUIDANCE_SCALE = 2.5;
const NEGATIVE_PROMPT = "低分辨率, 模糊";
const PROMPTS = [
  "国潮风T恤, 白色背景",
  "a blue mug on a wooden table",
  "红色灯笼，喜庆背景",
  "a green sofa, Nordic style",
];

/**
 * Our side is timed by a client: gRPC, all three stages and PNG encoding are in it. The other side's time ends with the
 * picture in memory. Both make the same picture from the same weights and seed, which is checked.
 */
export const bench: Bench = {
  description: `seconds per picture at ${SIZE}x${SIZE}, ${STEPS} steps, guidance on, one at a time: the worker against diffusers on torch`,
  options: {
    runs: { default: "9", help: "pictures of each side, in turns; the median counts" },
    threads: { default: "2", help: "CPU threads of each side" },
    model: { default: embeddedModel, help: "model bundle of both sides" },
  },
  async run(options) {
    const runs = count(options, "runs");
    const threads = count(options, "threads");
    const model = options["model"]!;
    const load = otherLoad();
    warnIfBusy(load);
    const { id } = JSON.parse(readFileSync(join(model, "atelier.json"), "utf8")) as { id: string };
    const folder = mkdtempSync(join(tmpdir(), "atelier-bench-"));
    const out = join(folder, "picture.rgb");
    const diffusers = await DiffusersProcess.start({ bundle: model, folder: join(folder, "diffusers"), threads });
    const worker = await WorkerProcess.start({ model, threads });
    try {
      await drawByWorker(worker, id, 0); // both are warm before they are timed
      await drawByDiffusers(diffusers, 0, out);
      const turns: Turn[] = [];
      for (let i = 1; i <= runs; i++) {
        const ours = await drawByWorker(worker, id, i);
        const theirsMs = await drawByDiffusers(diffusers, i, out);
        const psnrDb = psnr(ours.rgb, readFileSync(out));
        turns.push({ oursMs: ours.ms, theirsMs, psnrDb });
      }
      return report(turns, { threads, load, versions: diffusers.versions });
    } finally {
      await Promise.all([worker.stop(), diffusers.stop()]);
      rmSync(folder, { recursive: true });
    }
  },
};

interface Turn {
  readonly oursMs: number;
  readonly theirsMs: number;
  /** Between the two pictures. */
  readonly psnrDb: number;
}

function report(turns: readonly Turn[], { threads, ...more }: { threads: number; load: number; versions: object }) {
  const oursMs = median(turns.map((turn) => turn.oursMs));
  const theirsMs = median(turns.map((turn) => turn.theirsMs));
  const best = {
    oursMs: Math.min(...turns.map((turn) => turn.oursMs)),
    theirsMs: Math.min(...turns.map((turn) => turn.theirsMs)),
  };
  const psnrDbMin = Math.min(...turns.map((turn) => turn.psnrDb));
  console.log(`milliseconds per picture, ${threads} threads each, in turns:`);
  printTable([
    ["turn", "atelier", "diffusers", "PSNR dB"],
    ...turns.map(({ oursMs, theirsMs, psnrDb }, i) => [String(i + 1), oursMs, theirsMs, psnrDb]),
    ["median", oursMs, theirsMs, ""],
    ["best", best.oursMs, best.theirsMs, ""],
  ]);
  // Below this the two sides did different work, and their times say nothing.
  if (psnrDbMin < 40) throw new Error(`the pictures differ: ${psnrDbMin.toFixed(1)} dB; is one side another model?`);
  return {
    ratio: round(theirsMs / oursMs),
    goal: 1.6,
    atelier_ms: round(oursMs, 1),
    diffusers_ms: round(theirsMs, 1),
    psnr_db_min: round(psnrDbMin, 1),
    threads,
    ratio_of_best: round(best.theirsMs / best.oursMs),
    runs: turns.length,
    ...more,
  };
}

async function drawByWorker(worker: WorkerProcess, model: string, turn: number): Promise<{ ms: number; rgb: Buffer }> {
  const startedMs = performance.now();
  const { images } = await worker.draw({
    requestId: `bench-${turn}`,
    format: ImageFormat.PNG,
    parameters: {
      model,
      prompt: promptOf(turn),
      negativePrompt: NEGATIVE_PROMPT,
      width: SIZE,
      height: SIZE,
      steps: STEPS,
      guidanceScale: GUIDANCE_SCALE,
      sampler: Sampler.DPMPP_2M,
      seed: BigInt(turn),
      numImages: 1,
    },
  });
  const ms = performance.now() - startedMs;
  return { ms, rgb: await sharp(images[0]!.data).removeAlpha().raw().toBuffer() };
}

function drawByDiffusers(diffusers: DiffusersProcess, turn: number, out: string): Promise<number> {
  return diffusers.draw({
    prompt: promptOf(turn),
    negative_prompt: NEGATIVE_PROMPT,
    steps: STEPS,
    guidance_scale: GUIDANCE_SCALE,
    width: SIZE,
    height: SIZE,
    seed: turn,
    out,
  });
}

/** Every turn asks for another picture, so that no cache of embeddings helps after the first of each prompt. */
function promptOf(turn: number): string {
  return `${PROMPTS[turn % PROMPTS.length]} ${turn}`;
}

/** Peak signal-to-noise ratio of 8-bit samples, in dB; 99 for equal pictures. */
function psnr(first: Buffer, second: Buffer): number {
  if (first.length !== second.length) return 0;
  let squares = 0;
  for (let i = 0; i < first.length; i++) squares += (first[i]! - second[i]!) ** 2;
  return squares === 0 ? 99 : 10 * Math.log10((255 ** 2 * first.length) / squares);
}
