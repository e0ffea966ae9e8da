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
export const KINDS = ["wording", "language", "less said", "style", "scene", "colour", "product"] as const;

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

/** For each of the first `products` the pairs of one subject, for every second of them the others too; the same every time. */
export function promptPairs(products: number): PromptPair[] {
  return PRODUCTS.slice(0, products).flatMap(([product, productZh], i) => {
    const [colour, colourZh] = COLOURS[i % 8]!; // white on white, brown on wood: hard to tell by themselves
    const otherColour = COLOURS[(i + 3) % 8]![0];
    const otherProduct = PRODUCTS[(i + 5) % PRODUCTS.length]![0];
    const from = `a ${colour} ${product} on a white background`;
    const wanted = { product, colour };
    const near = [
      { kind: "wording", from, to: `product photo of a ${colour} ${product}, plain white background`, wanted },
      { kind: "language", from, to: `${colourZh}${productZh}，白色背景`, wanted },
      { kind: "less said", from, to: `a ${colour} ${product}`, wanted },
      { kind: "style", from, to: `a ${colour} ${product} on a white background, nordic style`, wanted },
    ] as const satisfies PromptPair[];
    const far = [
      { kind: "scene", from, to: `a ${colour} ${product} on a wooden table`, wanted },
      {
        kind: "colour",
        from,
        to: `a ${otherColour} ${product} on a white background`,
        wanted: { product, colour: otherColour },
      },
      {
        kind: "product",
        from,
        to: `a ${colour} ${otherProduct} on a white background`,
        wanted: { product: otherProduct, colour },
      },
    ] as const satisfies PromptPair[];
    return i % 2 === 0 ? [...near, ...far] : near;
  });
}
