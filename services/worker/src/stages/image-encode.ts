import { type Deadline, invariant, ServingError } from "@atelier/core";
import { type LatentShape, latentSize } from "@atelier/diffusion";
import type { LatentScaling } from "./image-decode.ts";
import type { RgbImage } from "./image-file.ts";

/** What the image-encode stage needs of a device. */
export interface VaeEncoder {
  /**
   * What the graph gives for one picture, `pixels` [3, height, width] of -1..1, flat. It belongs to the device and
   * holds until the next call. Not re-entrant.
   */
  encode(work: EncodeWork): Promise<EncodedPicture>;
}

export interface EncodeWork {
  readonly model: string;
  readonly pixels: Float32Array;
  readonly width: number;
  readonly height: number;
}

/**
 * [channels, height, width], flat, in VAE units. As many channels as the latent has: a mean or one sample, as exported;
 * twice as many: the means, then the logarithms of the variances.
 */
export interface EncodedPicture {
  readonly values: Float32Array;
  readonly channels: number;
  readonly height: number;
  readonly width: number;
}

/**
 * The latents that a picture may stand for, scaled as the U-Net wants them: a normal distribution for each number.
 * Without `std`, the encoder's export gives one latent for each picture.
 */
export interface LatentDistribution {
  /** [channels, height / 8, width / 8], flat, over shared memory: the images of a request read the same. */
  readonly mean: Float32Array;
  readonly std: Float32Array | undefined;
}

export interface EncodeJob {
  readonly id: string;
  readonly model: string;
  readonly picture: RgbImage;
  /** Of the latents. */
  readonly shape: LatentShape;
  readonly scaling: LatentScaling;
  readonly deadline: Deadline;
}

export type EncodeOutcome =
  | { readonly job: EncodeJob; readonly latents: LatentDistribution; readonly error?: undefined }
  | { readonly job: EncodeJob; readonly error: ServingError };

/** Turns pictures into what denoising can start from, one at a time, oldest first. */
export class ImageEncodeStage {
  readonly #vae: VaeEncoder;
  readonly #waitingMax: number;
  readonly #cancelled = new Set<string>();
  #waiting: EncodeJob[] = [];

  constructor(vae: VaeEncoder, limits: { waitingMax: number }) {
    this.#vae = vae;
    this.#waitingMax = limits.waitingMax;
  }

  /** @throws ServingError OVERLOADED when the waiting room is full. */
  enqueue(job: EncodeJob): void {
    if (this.#waiting.length >= this.#waitingMax) {
      throw new ServingError("OVERLOADED", `${this.#waitingMax} pictures already wait to be encoded`);
    }
    this.#waiting.push(job);
  }

  /** Takes a waiting job back; one that is being encoded is finished and thrown away by whoever asked for it. */
  cancel(id: string): void {
    if (this.#waiting.some((job) => job.id === id)) this.#cancelled.add(id);
  }

  get busy(): boolean {
    return this.#waiting.length > 0;
  }

  /** Encodes the oldest waiting picture. Undefined when none waits. */
  async step(): Promise<EncodeOutcome | undefined> {
    const job = this.#waiting.shift();
    if (job === undefined) return undefined;
    if (this.#cancelled.delete(job.id)) {
      return { job, error: new ServingError("CANCELLED", "the caller took the request back") };
    }
    try {
      job.deadline.check("encoding the init image");
      return { job, latents: await this.#encode(job) };
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      return { job, error };
    }
  }

  async #encode({ model, picture, shape, scaling }: EncodeJob): Promise<LatentDistribution> {
    const { width, height } = picture;
    return latentDistribution(
      await this.#vae.encode({ model, pixels: fromRgb(picture), width, height }),
      shape,
      scaling,
    );
  }
}

/**
 * Floats for an encoder from a picture's bytes: x -> x / 127.5 - 1, in planes.
 *
 * Shapes: from [height, width, 3] to [3, height, width]. Allocates the result.
 */
export function fromRgb({ data, width, height }: RgbImage): Float32Array {
  const plane = width * height;
  invariant(data.length === plane * 3, "a picture has three bytes for each pixel");
  const pixels = new Float32Array(data.length);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < plane; i++) pixels[channel * plane + i] = data[i * 3 + channel]! / 127.5 - 1;
  }
  return pixels;
}

/**
 * What the encoder gave, scaled: latent = (vae - shiftFactor) * scalingFactor.
 *
 * Logarithms of variances are clamped to -30..20.
 * Source: `DiagonalGaussianDistribution` of diffusers, models/autoencoders/vae.py.
 *
 * @throws ServingError NUMERIC_FAILURE when a value is NaN or infinite.
 */
export function latentDistribution(
  { values, channels, height, width }: EncodedPicture,
  shape: LatentShape,
  { scalingFactor, shiftFactor }: LatentScaling,
): LatentDistribution {
  const size = latentSize(shape);
  const hasVariances = channels === 2 * shape.channels;
  invariant(hasVariances || channels === shape.channels, `an encoder gave ${channels} channels`);
  invariant(height === shape.height && width === shape.width, `an encoder gave latents of ${height}x${width}`);
  if (!values.every(Number.isFinite)) {
    throw new ServingError("NUMERIC_FAILURE", "the VAE encoder gave NaN or an infinity");
  }
  const mean = shared(size);
  for (let i = 0; i < size; i++) mean[i] = (values[i]! - shiftFactor) * scalingFactor;
  if (!hasVariances) return { mean, std: undefined };
  const std = shared(size);
  for (let i = 0; i < size; i++) {
    const logVariance = Math.min(20, Math.max(-30, values[size + i]!));
    std[i] = Math.exp(logVariance / 2) * scalingFactor;
  }
  return { mean, std };
}

function shared(size: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(size * Float32Array.BYTES_PER_ELEMENT));
}
