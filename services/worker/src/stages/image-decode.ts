import { type Deadline, ServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { EncodedImage, ImageEncoding, RgbImage } from "./image-file.ts";

/** What the image-decode stage needs of a device. */
export interface VaeDecoder {
  /**
   * The picture of each latent, [3, height, width] of -1..1, flat; they belong to the device and hold until the next
   * call. Not re-entrant.
   */
  decode(work: DecodeWork): Promise<readonly DecodedPixels[]>;
}

export interface DecodeWork {
  readonly model: string;
  /** In VAE units: what the denoise stage makes, divided by the scaling factor. All of one shape. */
  readonly latents: readonly Float32Array[];
  readonly shape: LatentShape;
  /** With all of the device's threads, for when nothing else runs; otherwise with one. */
  readonly wide: boolean;
}

export interface DecodedPixels {
  readonly pixels: Float32Array;
  readonly width: number;
  readonly height: number;
}

/** Turns pixels into a file's bytes. */
export type EncodeImage = (image: RgbImage, encoding: ImageEncoding) => Promise<EncodedImage>;

/** How a model's latents are scaled: vae = latent / scalingFactor + shiftFactor. */
export interface LatentScaling {
  readonly scalingFactor: number;
  readonly shiftFactor: number;
}

export interface DecodeJob {
  readonly id: string;
  readonly model: string;
  readonly latent: Float32Array;
  readonly shape: LatentShape;
  readonly scaling: LatentScaling;
  readonly encoding: ImageEncoding;
  readonly deadline: Deadline;
}

export type DecodeOutcome =
  | { readonly job: DecodeJob; readonly image: EncodedImage; readonly error?: undefined }
  | { readonly job: DecodeJob; readonly error: ServingError };

/** Turns finished latents into image files, one at a time, oldest first. */
export class ImageDecodeStage {
  readonly #vae: VaeDecoder;
  readonly #encode: EncodeImage;
  readonly #waitingMax: number;
  readonly #cancelled = new Set<string>();
  #waiting: DecodeJob[] = [];

  constructor(vae: VaeDecoder, encode: EncodeImage, limits: { waitingMax: number }) {
    this.#vae = vae;
    this.#encode = encode;
    this.#waitingMax = limits.waitingMax;
  }

  /** @throws ServingError OVERLOADED when the waiting room is full. */
  enqueue(job: DecodeJob): void {
    if (this.#waiting.length >= this.#waitingMax) {
      throw new ServingError("OVERLOADED", `${this.#waitingMax} latents already wait to be decoded`);
    }
    this.#waiting.push(job);
  }

  /** Takes a waiting job back; one that is being decoded is finished and thrown away by whoever asked for it. */
  cancel(id: string): void {
    if (this.#waiting.some((job) => job.id === id)) this.#cancelled.add(id);
  }

  get busy(): boolean {
    return this.#waiting.length > 0;
  }

  /** Decodes the oldest waiting job. Undefined when none waits. */
  async step(): Promise<DecodeOutcome | undefined> {
    const job = this.#waiting.shift();
    if (job === undefined) return undefined;
    if (this.#cancelled.delete(job.id)) {
      return { job, error: new ServingError("CANCELLED", "the caller took the request back") };
    }
    try {
      job.deadline.check("decoding the image");
      return { job, image: await this.#decode(job) };
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      return { job, error };
    }
  }

  async #decode({ model, latent, shape, scaling, encoding }: DecodeJob): Promise<EncodedImage> {
    const { scalingFactor, shiftFactor } = scaling;
    const unscaled = latent.map((x) => x / scalingFactor + shiftFactor);
    const [decoded] = await this.#vae.decode({ model, latents: [unscaled], shape, wide: true });
    return this.#encode(toRgb(decoded!), encoding);
  }
}

/**
 * Bytes from a decoder's floats: x -> round(clamp(x / 2 + 0.5) * 255), planes interleaved.
 *
 * Shapes: from [3, height, width] to [height, width, 3]. Allocates the result.
 * @throws ServingError NUMERIC_FAILURE when a value is NaN.
 */
export function toRgb({ pixels, width, height }: DecodedPixels): RgbImage {
  const plane = width * height;
  const data = new Uint8ClampedArray(plane * 3); // clamps, and rounds halves to even as numpy does
  let sum = 0;
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0, from = channel * plane, to = channel; i < plane; i++, from++, to += 3) {
      const x = pixels[from]!;
      sum += x;
      data[to] = (x / 2 + 0.5) * 255;
    }
  }
  if (Number.isNaN(sum)) throw new ServingError("NUMERIC_FAILURE", "the VAE decoder gave NaN");
  return { data: new Uint8Array(data.buffer), width, height };
}
