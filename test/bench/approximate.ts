import { availableParallelism } from "node:os";
import { join } from "node:path";
import { Deadline, invariant, systemClock } from "@atelier/core";
import {
  createPipeline,
  type GenerationEvent,
  type GenerationRequest,
  type Pipeline,
  PromptTokenizer,
  parsePrompt,
} from "@atelier/worker";
import { ClipPair } from "../support/clip-pair.ts";
import { type Bench, count, otherLoad, percentile, printTable } from "./support/bench.ts";
import {
  allPairs,
  COLOURS,
  drawnPairs,
  KINDS,
  PRODUCTS,
  type PromptPair,
  type Subject,
} from "./support/prompt-pairs.ts";

const MODEL = "atelier-tiny";
const embeddedModel = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const FRACTIONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] as const;
/** Lower ends of the bins of similarity; what is below the last is not looked at. */
const BINS = [0.94, 0.84, 0.75, 0.5] as const;
/** A bin of fewer pairs says nothing. */
const PAIRS_MIN = 6;
/** What any kind of pair may lose, in points: of the CLIP score, 100 times the cosine, and of pictures recognised. */
const LOSS_MAX = 2;
const CALL_MAX_MS = 10 * 60_000;
const IN_FLIGHT = 6;

/** A picture as the CLIP pair sees it. */
interface Judged {
  /** 100 times the cosine with the picture's own prompt. */
  readonly score: number;
  /** The product is the likeliest of all products in its colour, and the colour of all colours of the product. */
  readonly recognised: boolean;
}

interface Measured {
  readonly pair: PromptPair;
  readonly similarity: number;
  /** Made from noise. */
  readonly whole: Judged;
  /** For each of FRACTIONS. */
  readonly shared: readonly Judged[];
}

/**
 * Each second prompt of a pair is drawn from noise, and from the first prompt's latent after a share of the steps. What
 * that costs decides how much may be reused at which similarity.
 *
 * All pictures of a pair have one seed, and each pair has its own. In service the two seeds differ, but what the sampler
 * (DPM-Solver++ 2M, which draws no noise) makes of a latent depends on the first's alone; with one seed for both sides the
 * luck of a seed, which is good or bad for some products, is not taken for the reuse's doing.
 */
export const bench: Bench = {
  description: "what a picture loses by beginning from a similar prompt's latent, by similarity and share of steps",
  options: {
    products: {
      default: "8",
      help: `products, up to ${PRODUCTS.length}; 5 pairs of prompts each, and 3 more for every second`,
    },
    steps: { default: "20", help: "steps of a picture of 256x256" },
    threads: { default: String(Math.min(4, availableParallelism())), help: "CPU threads" },
  },
  async run(options) {
    const steps = count(options, "steps");
    const pipeline = await createPipeline({
      bundleDirs: [embeddedModel],
      device: { kind: "onnx", provider: "cpu", threads: count(options, "threads") },
      limits: { queueMax: IN_FLIGHT, stepBatchMax: 8 },
      onFatal: (error) => {
        throw error;
      },
    });
    await pipeline.preload();
    try {
      const mistakenUpTo = await survey(pipeline);
      const measured = await measure(pipeline, drawnPairs(count(options, "products")), steps);
      for (const kind of KINDS)
        printGroup(
          kind,
          measured.filter(({ pair }) => pair.kind === kind),
        );
      const bins = BINS.map((from, i) => {
        const inBin = measured.filter(({ similarity }) => similarity >= from && similarity < (BINS[i - 1] ?? Infinity));
        printGroup(`similarity from ${from}`, inBin);
        return { minSimilarity: from, pairs: inBin.length, fraction: from > mistakenUpTo ? reusable(inBin) : 0 };
      });
      const table = monotone(bins).filter(({ fraction }) => fraction > 0);
      console.log(
        `\nlargest share with at most ${LOSS_MAX} points lost of either by any kind, in bins of ${PAIRS_MIN} pairs or more\nand above every similarity of another product or colour:`,
      );
      printTable([
        ["similarity", "pairs", "share of steps"],
        ...bins.map(({ minSimilarity, pairs, fraction }) => [`from ${minSimilarity}`, pairs, fraction.toFixed(1)]),
      ]);
      return {
        ratio: table[0]?.fraction ?? 0,
        goal: 0.2,
        table,
        pictures: measured.length * (FRACTIONS.length + 2),
        load: otherLoad(),
      };
    } finally {
      await pipeline.close();
    }
  },
};

async function measure(pipeline: Pipeline, pairs: readonly PromptPair[], steps: number): Promise<Measured[]> {
  const judge = await openJudge();
  return inParallel(pairs, async (pair, i) => {
    const wish = { prompt: pair.to, steps, seed: BigInt(1000 + i) };
    const { latents } = await draw(pipeline, { ...wish, prompt: pair.from, checkpointEverySteps: 1 });
    const whole = await judge((await draw(pipeline, wish)).picture, pair);
    const shared: Judged[] = [];
    for (const fraction of FRACTIONS) {
      const startLatent = latents.find(({ stepIndex }) => stepIndex === Math.round(fraction * steps));
      invariant(startLatent !== undefined, "every step but the last left a latent");
      shared.push(await judge((await draw(pipeline, { ...wish, startLatent })).picture, pair));
    }
    return { pair, similarity: await similarityOf(pipeline, pair), whole, shared };
  });
}

/**
 * How alike prompts of each kind are, over many more pairs than are drawn. Gives the similarity up to which prompts for
 * another product or colour are found: where those may be met, nothing is reused, whatever few pictures say.
 */
async function survey(pipeline: Pipeline): Promise<number> {
  const pairs = allPairs();
  const similarities = await inParallel(pairs, (pair) => similarityOf(pipeline, pair));
  const shares = [0, 0.1, 0.5, 0.9, 1];
  printTable([
    ["similarity, of so many pairs", "", "least", "10 %", "median", "90 %", "most"],
    ...KINDS.map((kind) => {
      const own = similarities.filter((_, i) => pairs[i]!.kind === kind);
      return [kind, own.length, ...shares.map((share) => percentile(own, share).toFixed(3))];
    }),
  ]);
  return Math.max(...similarities.filter((_, i) => ["colour", "product"].includes(pairs[i]!.kind)));
}

/** One picture, and where it stood after each step if that was asked for. */
async function draw(pipeline: Pipeline, wish: Partial<GenerationRequest> & { readonly prompt: string }) {
  const request: GenerationRequest = {
    id: `picture-${Math.random()}`,
    model: MODEL,
    negativePrompt: "",
    width: 256,
    height: 256,
    steps: 20,
    guidanceScale: 2.5,
    sampler: "dpmpp_2m",
    karras: false,
    seed: 0n,
    numImages: 1,
    encoding: { format: "png", quality: 90 },
    ...wish,
  };
  let picture: Uint8Array | undefined;
  const latents: NonNullable<GenerationRequest["startLatent"]>[] = [];
  const onEvent = (event: GenerationEvent) => {
    if (event.type === "image") picture = event.image.data;
    if (event.type !== "checkpoint") return;
    const { shape, snapshot } = event.image;
    latents.push({ shape, latent: snapshot.latent, stepIndex: snapshot.stepIndex, digest: "" });
  };
  await pipeline.generate(request, { ...patience(), onEvent });
  invariant(picture !== undefined, "a generation that ends well has its picture");
  return { picture, latents };
}

async function similarityOf(pipeline: Pipeline, { from, to }: PromptPair): Promise<number> {
  const [a, b] = await pipeline.embedTexts(MODEL, [from, to], patience());
  return a!.reduce((sum, x, i) => sum + x * b![i]!, 0);
}

function patience() {
  return { signal: new AbortController().signal, deadline: Deadline.after(systemClock, CALL_MAX_MS) };
}

async function openJudge(): Promise<(picture: Uint8Array, pair: PromptPair) => Promise<Judged>> {
  const tokenizer = await PromptTokenizer.load(join(embeddedModel, "tokenizer"));
  const clip = await ClipPair.load((text) =>
    BigInt64Array.from(tokenizer.tokenize(parsePrompt(text)).chunks[0]!.ids, BigInt),
  );
  const text = ({ colour, product }: Subject) => `a ${colour} ${product}`;
  return async (picture, { to, wanted }) => {
    const products = PRODUCTS.map(([product]) => text({ ...wanted, product }));
    const colours = COLOURS.map(([colour]) => text({ ...wanted, colour }));
    const [score, ...others] = await clip.scores(picture, [to, ...products, ...colours]);
    const ofProducts = others.slice(0, products.length);
    const ofColours = others.slice(products.length);
    const seen = [best(products, ofProducts), best(colours, ofColours)];
    return { score: 100 * score!, recognised: seen.every((one) => one === text(wanted)) };
  };
}

function best(texts: readonly string[], scores: readonly number[]): string {
  return texts[scores.indexOf(Math.max(...scores))]!;
}

/** Points lost against the same prompts drawn from noise, for each of FRACTIONS. */
function losses(group: readonly Measured[]) {
  return FRACTIONS.map((fraction, i) => ({
    fraction,
    score: mean(group.map(({ whole, shared }) => whole.score - shared[i]!.score)),
    recognised: 100 * mean(group.map(({ whole, shared }) => Number(whole.recognised) - Number(shared[i]!.recognised))),
  }));
}

/** The largest share at which, and below which, little enough is lost. */
function reusable(group: readonly Measured[]): number {
  if (group.length < PAIRS_MIN) return 0;
  // By kind: what one gains is no comfort to another, and the cache cannot tell them apart.
  const kinds = [...Map.groupBy(group, ({ pair }) => pair.kind).values()].map(losses);
  const firstBad = FRACTIONS.findIndex((_, i) =>
    kinds.some((lost) => lost[i]!.score > LOSS_MAX || lost[i]!.recognised > LOSS_MAX),
  );
  return (firstBad === -1 ? FRACTIONS.at(-1) : FRACTIONS[firstBad - 1]) ?? 0;
}

/** Less alike never reuses more, whatever few pairs say. */
function monotone(bins: readonly { minSimilarity: number; fraction: number }[]) {
  let most = Infinity;
  return bins.map(({ minSimilarity, fraction }) => {
    most = Math.min(most, fraction);
    return { minSimilarity, fraction: most };
  });
}

function printGroup(name: string, group: readonly Measured[]): void {
  if (group.length === 0) return;
  const similarities = group.map(({ similarity }) => similarity);
  const range = `${Math.min(...similarities).toFixed(2)} to ${Math.max(...similarities).toFixed(2)}`;
  const recognised = 100 * mean(group.map(({ whole }) => Number(whole.recognised)));
  const score = mean(group.map(({ whole }) => whole.score));
  console.log(
    `\n${name}: ${group.length} pairs, similarity ${range}; from noise: score ${score.toFixed(1)}, recognised ${recognised.toFixed(0)} %`,
  );
  const lost = losses(group);
  printTable([
    ["share of steps reused", ...FRACTIONS.map(String)],
    ["CLIP score lost, points", ...lost.map((one) => one.score.toFixed(1))],
    ["recognised lost, points", ...lost.map((one) => one.recognised.toFixed(0))],
  ]);
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

async function inParallel<Item, Result>(
  items: readonly Item[],
  work: (item: Item, i: number) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = [];
  let next = 0;
  const lane = async () => {
    while (next < items.length) {
      const i = next++;
      results[i] = await work(items[i]!, i);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
  return results;
}
