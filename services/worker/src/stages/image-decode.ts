import { type Clock, type Deadline, ServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { EncodedImage, ImageEncoding, RgbImage } from "./image-file.ts";
import { type PriorityClass, urgencyRank } from "./order/service-order.ts";
import { decodeInTiles, needsTiles } from "./tiled-decode.ts";

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
  /** Places of a latent along the side of a tile, where it is decoded in tiles. */
  readonly tile: number;
  /** With all of the device's threads; see `DecodeWork`. */
  readonly wide: boolean;
  readonly encoding: ImageEncoding;
  readonly priorityClass: PriorityClass;
  readonly deadline: Deadline;
}

export interface DecodedImage {
  readonly image: EncodedImage;
  /** Whether it was decoded in tiles. */
  readonly tiled: boolean;
  /** Milliseconds of the whole device that its part of the decoder's run took. */
  readonly deviceMs: number;
}

export type DecodeOutcome =
  | { readonly job: DecodeJob; readonly decoded: DecodedImage; readonly error?: undefined }
  | { readonly job: DecodeJob; readonly error: ServingError };

/**
 * Pictures of more pixels than this are decoded in tiles, unless configured otherwise: the largest that SDXL was trained
 * on. Tiles take less memory, somewhat more time, and differ a little in tone.
 */
export const DECODE_TILE_PIXELS = 1024 * 1024;

export interface DecodeLimits {
  readonly waitingMax: number;
  /** Latents in one run of the decoder. */
  readonly batchMax: number;
  /** Pictures that are being made into files while the decoder goes on; at this many it waits for one. */
  readonly encodingMax: number;
  /** A picture of more pixels is decoded in tiles. */
  readonly wholePixelsMax: number;
}

export interface DecodeParts {
  readonly vae: VaeDecoder;
  readonly clock: Clock;
  /** How much of the device a run takes that is not wide. */
  readonly narrowShare: number;
  readonly encode: EncodeImage;
  /** Told what became of each job, once. */
  readonly onOutcome: (outcome: DecodeOutcome) => void;
}

/**
 * Turns finished latents into image files, the most urgent class first and in it the oldest; with it go those of its
 * class, model and shape that wait as well. Bulk work goes one by one: whoever comes meanwhile waits for a run to end.
 * Files are written by other threads (sharp's) while the next latents are decoded.
 */
export class ImageDecodeStage {
  readonly #parts: DecodeParts;
  readonly #limits: DecodeLimits;
  readonly #cancelled = new Set<string>();
  readonly #encoding = new Set<Promise<void>>();
  #waiting: DecodeJob[] = [];

  constructor(parts: DecodeParts, limits: DecodeLimits) {
    this.#parts = parts;
    this.#limits = limits;
  }

  /** @throws ServingError OVERLOADED when the waiting room is full. */
  enqueue(job: DecodeJob): void {
    if (this.#waiting.length >= this.#limits.waitingMax) {
      throw new ServingError("OVERLOADED", `${this.#limits.waitingMax} latents already wait to be decoded`);
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

  /** One turn: drop, decode once, and hand what came of it to be encoded. */
  async step(): Promise<void> {
    this.#dropEnded();
    if (this.#encoding.size >= this.#limits.encodingMax) await Promise.race(this.#encoding);
    const batch = this.#takeBatch();
    if (batch.length > 0) await this.#decode(batch);
  }

  /** Resolves when every file that was begun is written and told of. */
  async settled(): Promise<void> {
    while (this.#encoding.size > 0) await Promise.all(this.#encoding);
  }

  #dropEnded(): void {
    const jobs = this.#waiting;
    this.#waiting = [];
    for (const job of jobs) {
      try {
        if (this.#cancelled.delete(job.id)) throw new ServingError("CANCELLED", "the caller took the request back");
        job.deadline.check("decoding the image");
        this.#waiting.push(job);
      } catch (error) {
        this.#fail(job, error);
      }
    }
  }

  #takeBatch(): readonly DecodeJob[] {
    const [oldest] = this.#waiting;
    if (oldest === undefined) return [];
    const first = this.#waiting.reduce((best, job) => (rankOf(job) < rankOf(best) ? job : best), oldest);
    const alone = first.priorityClass === "bulk" || this.#tiled(first);
    const together = alone ? [first] : this.#waiting.filter((job) => fitTogether(job, first));
    const batch = together.slice(0, this.#limits.batchMax);
    this.#waiting = this.#waiting.filter((job) => !batch.includes(job));
    return batch;
  }

  /** A batch that the device has no memory for is decoded one by one, and a latent that it has none for in tiles. */
  async #decode(batch: readonly DecodeJob[], tiled = this.#tiled(batch[0]!)): Promise<void> {
    const [first] = batch as readonly [DecodeJob];
    const { clock, narrowShare } = this.#parts;
    const startedAtMs = clock.nowMs();
    let decoded: readonly DecodedPixels[];
    try {
      decoded = tiled ? [await this.#decodeInTiles(first)] : await this.#decodeWhole(batch);
    } catch (error) {
      if (error instanceof ServingError && error.code === "OUT_OF_MEMORY") {
        if (batch.length > 1) return await this.#decodeEach(batch);
        if (!tiled && needsTiles(first.shape, first.tile)) return await this.#decode(batch, true);
      }
      for (const job of batch) this.#fail(job, error);
      return;
    }
    const share = batch.every(({ wide }) => wide) ? 1 : narrowShare;
    const deviceMs = ((clock.nowMs() - startedAtMs) * share) / batch.length;
    batch.forEach((job, i) => {
      this.#encode(job, decoded[i]!, { tiled, deviceMs });
    });
  }

  async #decodeEach(batch: readonly DecodeJob[]): Promise<void> {
    for (const job of batch) await this.#decode([job]);
  }

  #decodeWhole(batch: readonly DecodeJob[]): Promise<readonly DecodedPixels[]> {
    const { model, shape } = batch[0]!;
    return this.#parts.vae.decode({
      model,
      latents: batch.map(unscaled),
      shape,
      wide: batch.every(({ wide }) => wide),
    });
  }

  #decodeInTiles(job: DecodeJob): Promise<DecodedPixels> {
    const { model, wide } = job;
    return decodeInTiles(unscaled(job), job.shape, job.tile, async (latent, shape) => {
      job.deadline.check("decoding the image");
      const [decoded] = await this.#parts.vae.decode({ model, latents: [latent], shape, wide });
      return decoded!;
    });
  }

  #tiled({ shape, tile }: DecodeJob): boolean {
    const pixels = shape.height * shape.width * 64;
    return pixels > this.#limits.wholePixelsMax && needsTiles(shape, tile);
  }

  /** The pixels are the device's: they are read before this returns. */
  #encode(job: DecodeJob, pixels: DecodedPixels, how: Omit<DecodedImage, "image">): void {
    let rgb: RgbImage;
    try {
      rgb = toRgb(pixels);
    } catch (error) {
      this.#fail(job, error);
      return;
    }
    const encoding = this.#parts.encode(rgb, job.encoding).then(
      (image) => this.#parts.onOutcome({ job, decoded: { image, ...how } }),
      (error: unknown) => this.#fail(job, error),
    );
    this.#encoding.add(encoding);
    void encoding.finally(() => this.#encoding.delete(encoding));
  }

  /** @throws what is no ServingError: a bug. */
  #fail(job: DecodeJob, error: unknown): void {
    if (!(error instanceof ServingError)) throw error;
    this.#parts.onOutcome({ job, error });
  }
}

function fitTogether(a: DecodeJob, b: DecodeJob): boolean {
  const sameShape = a.shape.height === b.shape.height && a.shape.width === b.shape.width;
  return a.priorityClass === b.priorityClass && a.model === b.model && sameShape;
}

function rankOf({ priorityClass }: DecodeJob): number {
  return urgencyRank(priorityClass);
}

function unscaled({ latent, scaling: { scalingFactor, shiftFactor } }: DecodeJob): Float32Array {
  return latent.map((x) => x / scalingFactor + shiftFactor);
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
