import { join } from "node:path";
import { PromptTokenizer, parsePrompt } from "@atelier/worker";
import { ClipPair } from "../../support/clip-pair.ts";
import { COLOURS, PRODUCTS, type Subject } from "./prompt-pairs.ts";

const BUNDLE = join(import.meta.dirname, "../../../deploy/models/atelier-tiny");

/** Whether a picture shows what was wanted: of all products in its colour that product, of all colours of it that colour. */
export type Judge = (picture: Uint8Array, wanted: Subject) => Promise<boolean>;

/** The CLIP pair that ships with the embedded model, which never saw a generated picture. */
export async function openJudge(): Promise<Judge> {
  const tokenizer = await PromptTokenizer.load(join(BUNDLE, "tokenizer"));
  const clip = await ClipPair.load((text) =>
    BigInt64Array.from(tokenizer.tokenize(parsePrompt(text)).chunks[0]!.ids, BigInt),
  );
  return async (picture, wanted) => {
    const text = ({ colour, product }: Subject) => `a ${colour} ${product}`;
    const products = PRODUCTS.map(([product]) => text({ ...wanted, product }));
    if (products[await clip.best(picture, products)] !== text(wanted)) return false;
    const colours = COLOURS.map(([colour]) => text({ ...wanted, colour }));
    return colours[await clip.best(picture, colours)] === text(wanted);
  };
}
