/** A product of the tiny model with a colour, as the judge looks for it. */
export interface Subject {
  readonly product: string;
  readonly colour: string;
}

/** Two prompts: a picture of the second begins from the first's latent. */
export interface PromptPair {
  readonly kind: (typeof KINDS)[number];
  readonly from: string;
  readonly to: string;
  /** What the second asks for. */
  readonly wanted: Subject;
}

/** From the same picture in other words to another picture in the same words. */
export const KINDS = ["wording", "language", "less said", "style", "pattern", "scene", "colour", "product"] as const;

export const PRODUCTS = [
  ["t-shirt", "T恤"],
  ["mug", "马克杯"],
  ["sofa", "沙发"],
  ["umbrella", "雨伞"],
  ["teapot", "茶壶"],
  ["lantern", "灯笼"],
  ["vase", "花瓶"],
  ["backpack", "背包"],
  ["sneaker", "运动鞋"],
  ["dress", "连衣裙"],
  ["hoodie", "卫衣"],
  ["cap", "帽子"],
  ["handbag", "手提包"],
  ["mooncake", "月饼"],
] as const;

export const COLOURS = [
  ["red", "红色"],
  ["blue", "蓝色"],
  ["green", "绿色"],
  ["yellow", "黄色"],
  ["purple", "紫色"],
  ["black", "黑色"],
  ["pink", "粉色"],
  ["orange", "橙色"],
  ["brown", "棕色"],
  ["white", "白色"],
] as const;

/** What is drawn: for each of the first `products`, in a colour of its own, the pairs that most words are shared by; for every second the others too. */
export function drawnPairs(products: number): PromptPair[] {
  return PRODUCTS.slice(0, products).flatMap((_, i) => pairsOf(i, i).slice(0, i % 2 === 0 ? KINDS.length : FAR));
}

/** Every product in every colour but brown and white, which are hard to tell from the scenes. */
export function allPairs(): PromptPair[] {
  return PRODUCTS.flatMap((_, i) => COLOURS.slice(0, PLAIN).flatMap((__, j) => pairsOf(i, j)));
}

const PLAIN = 8;
const FAR = KINDS.indexOf("scene");

/** One of each kind, in their order. */
function pairsOf(productIndex: number, colourIndex: number): PromptPair[] {
  const [product, productZh] = PRODUCTS[productIndex]!;
  const [colour, colourZh] = COLOURS[colourIndex % PLAIN]!;
  const otherColour = COLOURS[(colourIndex + 3) % PLAIN]![0];
  const otherProduct = PRODUCTS[(productIndex + 5) % PRODUCTS.length]![0];
  const wanted = { product, colour };
  const others: Readonly<Record<PromptPair["kind"], { readonly to: string; readonly wanted?: Subject }>> = {
    wording: { to: `product photo of a ${colour} ${product}, plain white background` },
    language: { to: `${colourZh}${productZh}，白色背景` },
    "less said": { to: `a ${colour} ${product}` },
    style: { to: `a ${colour} ${product} on a white background, nordic style` },
    pattern: { to: `a striped ${colour} ${product} on a white background` },
    scene: { to: `a ${colour} ${product} on a wooden table` },
    colour: { to: `a ${otherColour} ${product} on a white background`, wanted: { product, colour: otherColour } },
    product: { to: `a ${colour} ${otherProduct} on a white background`, wanted: { product: otherProduct, colour } },
  };
  const from = `a ${colour} ${product} on a white background`;
  return KINDS.map((kind) => ({ kind, from, wanted, ...others[kind] }));
}
