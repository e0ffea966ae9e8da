import type { ImageRequest } from "../image-request.ts";

/** How much the newest request counts: about the last twenty decide. */
const NEWEST_SHARE = 0.1;

type Picture = Pick<ImageRequest, "model" | "width" | "height" | "numImages">;

/**
 * What a request takes beside its steps: text, decoding, encoding, and the way there and back. Learned for each model, in
 * proportion to the pixels, from requests that had nothing to wait for, so that a worker's queue is not taken for it.
 */
export class AfterSteps {
  readonly #msPerPixel = new Map<string, number>();

  /** A request took so much longer than its steps were predicted to. */
  observe(picture: Picture, ms: number): void {
    const msPerPixel = Math.max(0, ms) / pixelsOf(picture);
    const known = this.#msPerPixel.get(picture.model);
    this.#msPerPixel.set(picture.model, known === undefined ? msPerPixel : known + NEWEST_SHARE * (msPerPixel - known));
  }

  /** Milliseconds; 0 before anything is known of the model. */
  predictMs(picture: Picture): number {
    return (this.#msPerPixel.get(picture.model) ?? 0) * pixelsOf(picture);
  }
}

function pixelsOf({ width, height, numImages }: Picture): number {
  return width * height * numImages;
}
