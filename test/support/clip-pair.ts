import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import sharp from "sharp";

const CLIP = join(import.meta.dirname, "../../deploy/models/atelier-tiny/clip");

interface Preprocessor {
  readonly crop_size: { readonly width: number; readonly height: number };
  readonly image_mean: readonly number[];
  readonly image_std: readonly number[];
}

/**
 * Compares pictures with texts by the CLIP pair that ships with the embedded model.
 * It was trained on drawings and never saw a generated picture.
 */
export class ClipPair {
  readonly #text: InferenceSession;
  readonly #vision: InferenceSession;
  readonly #preprocessor: Preprocessor;
  readonly #tokenize: (text: string) => BigInt64Array;
  /** The same few texts are asked for with every picture. */
  readonly #texts = new Map<string, Float32Array>();

  constructor(
    text: InferenceSession,
    vision: InferenceSession,
    preprocessor: Preprocessor,
    tokenize: (text: string) => BigInt64Array,
  ) {
    this.#text = text;
    this.#vision = vision;
    this.#preprocessor = preprocessor;
    this.#tokenize = tokenize;
  }

  static async load(tokenize: (text: string) => BigInt64Array): Promise<ClipPair> {
    const [text, vision, preprocessor] = await Promise.all([
      InferenceSession.create(join(CLIP, "text_model.onnx")),
      InferenceSession.create(join(CLIP, "vision_model.onnx")),
      readFile(join(CLIP, "preprocessor_config.json"), "utf8").then((json) => JSON.parse(json) as Preprocessor),
    ]);
    return new ClipPair(text, vision, preprocessor, tokenize);
  }

  /** Index of the text that fits the picture best. */
  async best(picture: Uint8Array, texts: readonly string[]): Promise<number> {
    const scores = await this.scores(picture, texts);
    return scores.indexOf(Math.max(...scores));
  }

  /** How well each text fits the picture: cosines, -1..1. */
  async scores(picture: Uint8Array, texts: readonly string[]): Promise<number[]> {
    const image = await this.#embedPicture(picture);
    const scores: number[] = [];
    for (const text of texts) scores.push(dot(image, await this.#embedText(text)));
    return scores;
  }

  async #embedText(text: string): Promise<Float32Array> {
    const known = this.#texts.get(text);
    if (known !== undefined) return known;
    const ids = new Tensor("int64", this.#tokenize(text), [1, 77]);
    const { text_embeds } = await this.#text.run({ input_ids: ids });
    const embedded = Float32Array.from(text_embeds!.data as Float32Array);
    this.#texts.set(text, embedded);
    return embedded;
  }

  async #embedPicture(picture: Uint8Array): Promise<Float32Array> {
    const { crop_size: size, image_mean: mean, image_std: std } = this.#preprocessor;
    const rgb = await sharp(picture).resize(size.width, size.height).removeAlpha().raw().toBuffer();
    const area = size.width * size.height;
    const pixels = new Float32Array(3 * area);
    for (let c = 0; c < 3; c++) {
      for (let i = 0; i < area; i++) pixels[c * area + i] = (rgb[i * 3 + c]! / 255 - mean[c]!) / std[c]!;
    }
    const { image_embeds } = await this.#vision.run({
      pixel_values: new Tensor("float32", pixels, [1, 3, size.height, size.width]),
    });
    return image_embeds!.data as Float32Array;
  }
}

function dot(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, x, i) => sum + x * b[i]!, 0);
}
