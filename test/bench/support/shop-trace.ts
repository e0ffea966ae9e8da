import { invariant, seededRandom } from "@atelier/core";
import { COLOURS, PRODUCTS, type Subject } from "./prompt-pairs.ts";

/** What a shop's pages ask for, one after another. */
export interface ShopRequest {
  readonly prompt: string;
  /** Absent where any picture of it will do. */
  readonly seed?: number;
  readonly wanted: Subject;
  /** In other words than the shop usually has for it. */
  readonly reworded: boolean;
}

export interface TraceOptions {
  readonly requests: number;
  readonly prompts: number;
}

const SCENES = [
  ["on a white background", "白色背景"],
  ["on a wooden table", "木桌"],
  ["on a light grey background", "灰色背景"],
  ["on a beige background", "米色背景"],
] as const;
const REWORDED_SHARE = 0.3;
const SEEDED_SHARE = 0.3;
/** Of those with a seed, how many have the page's own, so that its picture stays the same; the others have a new one. */
const OWN_SEED_SHARE = 2 / 3;

/**
 * Requests of one shop, the same every time: prompts by Zipf's law (the r-th most popular as often as 1 / r), three in ten
 * of them reworded as people do, three in ten with a seed, a third of the prompts in Chinese.
 */
export function shopTrace({ requests, prompts }: TraceOptions): ShopRequest[] {
  const random = seededRandom(20);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random.next() * list.length)]!;
  let total = 0;
  const upTo = Array.from({ length: prompts }, (_, i) => {
    total += 1 / (i + 1);
    return total;
  });
  const pages = Array.from({ length: prompts }, (_, i) => page(i));
  invariant(new Set(pages.map(({ usual }) => usual)).size === prompts, "each page has a prompt of its own");
  return Array.from({ length: requests }, (_, i) => {
    const drawn = random.next() * total;
    const rank = upTo.findIndex((weight) => drawn < weight);
    const { usual, others, wanted } = pages[rank]!;
    const reworded = random.next() < REWORDED_SHARE;
    const prompt = reworded ? pick(others) : usual;
    const seeded = random.next() < SEEDED_SHARE;
    const seed = random.next() < OWN_SEED_SHARE ? 1_000 + rank : 100_000 + i;
    return { prompt, reworded, wanted, ...(seeded && { seed }) };
  });
}

/** What the shop's `i`-th page shows. Products, colours and scenes go by strides that share no factor with their counts. */
function page(i: number): { usual: string; others: readonly string[]; wanted: Subject } {
  const [product, productZh] = PRODUCTS[(i * 5) % PRODUCTS.length]!;
  // Brown on wood and white on white are hard to tell by themselves.
  const [colour, colourZh] = COLOURS[(i * 3 + Math.floor(i / 56)) % 8]!;
  const [scene, sceneZh] = SCENES[Math.floor(i / 2) % SCENES.length]!;
  const wanted = { product, colour };
  if (i % 3 === 2) {
    const thing = `${colourZh}${productZh}`;
    return {
      usual: `${thing}，${sceneZh}`,
      others: [
        `一个${thing}，${sceneZh}`,
        `${thing}, ${sceneZh}`,
        `${colourZh}的${productZh}，${sceneZh}`,
        `${thing}产品图，${sceneZh}`,
      ],
      wanted,
    };
  }
  const thing = `${colour} ${product}`;
  return {
    usual: `a ${thing} ${scene}`,
    others: [
      `${thing} ${scene}`,
      `A ${thing}, ${scene}.`,
      `one ${thing} ${scene}`,
      `product photo of a ${thing} ${scene}`,
    ],
    wanted,
  };
}
