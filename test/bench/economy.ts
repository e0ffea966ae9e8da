import { availableParallelism } from "node:os";
import { join } from "node:path";
import { invariant } from "@atelier/core";
import { spawnWorker } from "@atelier/worker/testing/spawn-worker";
import { type Bench, count, otherLoad, printGoals, printTable, round } from "./support/bench.ts";
import { GatewayProcess } from "./support/gateway-process.ts";
import { type Judge, openJudge } from "./support/judge.ts";
import { type ShopRequest, shopTrace } from "./support/shop-trace.ts";

const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const SAVED_GOAL = 0.6;
const LOST_POINTS_MAX = 2;
/** Both sides are asked at the same time, so that what else the machine does is the same for both. */
const IN_FLIGHT = 4;
const LEVELS = ["hit", "shared", "approximate", "miss", "bypass"] as const;

interface Answer {
  readonly level: (typeof LEVELS)[number];
  /** That were spent for it: none where the picture was there. */
  readonly deviceMs: number;
  readonly reusedSteps: number;
  readonly steps: number;
  readonly picture: string;
}

/**
 * One trace, from empty caches, through two gateways before one worker process: one reuses all that it may, the other
 * nothing. Without reuse each request takes the same but for chance, so that side is asked for an even sample of the
 * trace, while the other is at the same place of it.
 */
export const bench: Bench = {
  description:
    "device seconds that reuse saves on a shop's requests, and whether its pictures still show what they should",
  options: {
    requests: { default: "700", help: "of the trace" },
    sample: { default: "5", help: "without reuse, each so manieth request" },
    prompts: { default: "60", help: "the shop's pages, asked for by Zipf's law" },
    steps: { default: "15", help: "of a picture of 256x256" },
    variants: {
      default: "2",
      help: "pictures of a prompt that requests without a seed share (ATELIER_CACHE_VARIANTS)",
    },
    "min-asks": { default: "1", help: "before a picture is kept (ATELIER_CACHE_MIN_ASKS)" },
    threads: { default: String(Math.min(4, availableParallelism())), help: "CPU threads of the worker" },
  },
  async run(options) {
    const steps = count(options, "steps");
    const trace = shopTrace({ requests: count(options, "requests"), prompts: count(options, "prompts") });
    const worker = spawnWorker({ ATELIER_MODELS: embeddedModel, ATELIER_THREADS: options["threads"]! });
    const gateways: GatewayProcess[] = [];
    try {
      const { address } = await worker.said("listening");
      await worker.said("ready");
      const start = async (env: Record<string, string>) => {
        const gateway = await GatewayProcess.start({ workers: [address], env });
        gateways.push(gateway);
        return gateway.url;
      };
      const reusing = await start({
        ATELIER_APPROXIMATE: "always",
        ATELIER_CACHE_VARIANTS: options["variants"]!,
        ATELIER_CACHE_MIN_ASKS: options["min-asks"]!,
      });
      const without = await start({ ATELIER_CACHE_SCOPE: "off" });
      await Promise.all([0, 1, 2].map((i) => ask(without, { prompt: `warming up ${i}`, seed: i }, steps)));
      const sample = count(options, "sample");
      const theirs: Promise<Answer>[] = [];
      const ours = await replay(reusing, trace, steps, (i) => {
        if (i % sample === 0) theirs.push(ask(without, trace[i]!, steps));
        return i % sample === 0 ? theirs.at(-1) : undefined;
      });
      const sampled = await Promise.all(theirs);
      const sampledMs = sampled.map(({ deviceMs }) => deviceMs);
      // By quarters, since what else the machine does changes what a picture takes in the course of the trace.
      const otherwiseMs = trace.map((_, i) => meanNear(sampledMs, i / trace.length));

      const judge = await openJudge();
      const recognised = {
        ours: await recognisedOf(judge, ours, (i) => trace[i]!.wanted),
        theirs: await recognisedOf(judge, sampled, (i) => trace[i * sample]!.wanted),
      };
      const spentMs = sum(ours.map(({ deviceMs }) => deviceMs));
      const wholeMs = sum(otherwiseMs);
      const saved = 1 - spentMs / wholeMs;
      printLevels(ours, otherwiseMs);
      printQuarters(ours, otherwiseMs);
      console.log(
        `without reuse ${mean(sampledMs).toFixed(0)} ms a picture (mean of ${sampled.length}, standard error ${errorOf(sampledMs).toFixed(0)})`,
      );
      const lost = 100 * (mean(recognised.theirs) - mean(recognised.ours));
      const begun = recognised.ours.filter((_, i) => ours[i]!.reusedSteps > 0);
      console.log(
        `\nrecognised (product and colour): ${percent(mean(recognised.ours))} with reuse, ${percent(mean(recognised.theirs))} without; ` +
          `${percent(mean(begun))} of the ${begun.length} answers that left out steps`,
      );
      printGoals([
        { name: "device seconds saved", value: saved, atLeast: SAVED_GOAL },
        { name: "recognised less often, points", value: lost, atMost: LOST_POINTS_MAX },
      ]);
      return {
        ratio: round(saved, 3),
        goal: SAVED_GOAL,
        device_seconds: { reuse: round(spentMs / 1000, 1), none: round(wholeMs / 1000, 1) },
        sampled: sampled.length,
        recognised: { reuse: round(mean(recognised.ours), 3), none: round(mean(recognised.theirs), 3) },
        lost_points: round(lost, 1),
        levels: Object.fromEntries(LEVELS.map((level) => [level, ours.filter((one) => one.level === level).length])),
        requests: trace.length,
        distinct: new Set(trace.map(({ prompt, seed }) => `${prompt} ${seed}`)).size,
        steps,
        load: otherLoad(),
      };
    } finally {
      await Promise.all(gateways.map((gateway) => gateway.stop()));
      worker.process.kill("SIGKILL");
      await worker.exited;
    }
  },
};

/** In the trace's order, so many at a time; what `beside` begins with a request ends before the next one is asked. */
async function replay(
  url: string,
  trace: readonly ShopRequest[],
  steps: number,
  beside: (i: number) => Promise<unknown> | undefined,
): Promise<Answer[]> {
  const answers: Answer[] = [];
  let next = 0;
  const lane = async () => {
    while (next < trace.length) {
      const i = next++;
      [answers[i]] = await Promise.all([ask(url, trace[i]!, steps), beside(i)]);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
  return answers;
}

async function ask(
  url: string,
  { prompt, seed }: Pick<ShopRequest, "prompt" | "seed">,
  steps: number,
): Promise<Answer> {
  const response = await fetch(`${url}/v1/generations`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt, width: 256, height: 256, steps, ...(seed !== undefined && { seed }) }),
  });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  const { receipt, images } = (await response.json()) as {
    receipt: { cache: Answer["level"]; device_ms?: number; reused_steps?: number };
    images: { b64_json: string }[];
  };
  const { cache: level, device_ms: deviceMs, reused_steps: reusedSteps = 0 } = receipt;
  invariant(deviceMs !== undefined && LEVELS.includes(level), "a receipt says what was spent, and what for");
  // The receipt is the making's; one that was there or shared spent nothing more.
  const spentMs = level === "hit" || level === "shared" ? 0 : deviceMs;
  return { level, deviceMs: spentMs, reusedSteps, steps, picture: images[0]!.b64_json };
}

/** For each answer; each picture is looked at once. */
async function recognisedOf(
  judge: Judge,
  answers: readonly Answer[],
  wanted: (i: number) => ShopRequest["wanted"],
): Promise<readonly number[]> {
  const seen = new Map<string, number>();
  for (const [i, { picture }] of answers.entries()) {
    if (seen.has(picture)) continue;
    seen.set(picture, Number(await judge(Buffer.from(picture, "base64"), wanted(i))));
  }
  return answers.map(({ picture }) => seen.get(picture)!);
}

/** What each level saved, against what the same requests took without reuse. */
function printLevels(ours: readonly Answer[], otherwiseMs: readonly number[]): void {
  console.log("");
  printTable([
    ["level", "requests", "share", "device s", "without reuse", "saved of all"],
    ...LEVELS.map((level) => {
      const at = ours.flatMap((one, i) => (one.level === level ? [i] : []));
      const spent = sum(at.map((i) => ours[i]!.deviceMs));
      const otherwise = sum(at.map((i) => otherwiseMs[i]!));
      return [
        level,
        at.length,
        percent(at.length / ours.length),
        (spent / 1000).toFixed(1),
        (otherwise / 1000).toFixed(1),
        percent((otherwise - spent) / sum(otherwiseMs)),
      ];
    }),
  ]);
  const begun = ours.filter(({ level }) => level === "approximate");
  const left = sum(begun.map(({ reusedSteps }) => reusedSteps)) / sum(begun.map(({ steps }) => steps));
  if (begun.length > 0) console.log(`approximate: ${percent(left)} of their steps left out`);
}

/** The caches begin empty: what is saved grows as they fill. */
function printQuarters(ours: readonly Answer[], otherwiseMs: readonly number[]): void {
  const quarter = Math.ceil(ours.length / 4);
  const saved = [0, 1, 2, 3].map((i) => {
    const part = (all: readonly number[]) => sum(all.slice(i * quarter, (i + 1) * quarter));
    return percent(1 - part(ours.map(({ deviceMs }) => deviceMs)) / part(otherwiseMs));
  });
  console.log(`saved in each quarter of the trace, from empty caches: ${saved.join(", ")}`);
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
const mean = (values: readonly number[]) => (values.length === 0 ? 0 : sum(values) / values.length);
/** Mean of the quarter of `values` that the place `at` (0..1) falls into. */
const meanNear = (values: readonly number[], at: number) => {
  const edge = (i: number) => Math.floor((i * values.length) / 4);
  const quarter = Math.floor(4 * at);
  return mean(values.slice(edge(quarter), Math.max(edge(quarter) + 1, edge(quarter + 1))));
};
/** Standard error of the mean. */
const errorOf = (values: readonly number[]) =>
  Math.sqrt(mean(values.map((value) => (value - mean(values)) ** 2)) / Math.max(1, values.length - 1));
const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
