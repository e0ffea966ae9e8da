import type { ImageRequest } from "../image-request.ts";

/** Of a picture at most this share of its steps is made over again when its worker is lost. */
const LOST_SHARE_MAX = 0.2;
/** What the checkpoints of one picture may weigh together: as much as its PNG at 1024x1024. */
const PICTURE_BYTES_MAX = 4 * 1024 * 1024;
/** What is made again sooner than this is not worth the bytes. */
const WORTH_MS = 250;

/**
 * Steps between two checkpoints of a picture; 0: none.
 *
 * A checkpoint costs its bytes: at 512x512, 128 KiB, the worker writes and hashes them in 0.4 ms and the gateway reads them
 * in 0.02 ms (at 1024x1024 1.4 ms), beside steps of tens of milliseconds or more. Young's formula would have hardly any at such a price, since workers
 * seldom die; but what counts is how much later the caller of a dead one has its picture.
 */
export function checkpointInterval(
  { steps, width, height, sampler }: Pick<ImageRequest, "steps" | "width" | "height" | "sampler">,
  predictedMs: number,
): number {
  if (predictedMs < WORTH_MS) return 0;
  const arrays = sampler === "unipc" ? 4 : 2; // the latent, and what the sampler keeps
  const bytes = (width / 8) * (height / 8) * CHANNELS * Float32Array.BYTES_PER_ELEMENT * arrays;
  return Math.max(1, Math.ceil(steps * LOST_SHARE_MAX), Math.ceil((steps * bytes) / PICTURE_BYTES_MAX));
}

/** Of every latent space that we know but the newest's 16, which make it four times as heavy. */
const CHANNELS = 4;
