import type { LatentShape } from "@atelier/diffusion";

/** Bytes of a model's files, by network. */
export interface NetworkBytes {
  /** All of them together, where there are two. */
  readonly textEncoder: number;
  readonly unet: number;
  readonly vaeDecoder: number;
  /** 0 where the bundle has none. */
  readonly vaeEncoder: number;
}

/**
 * What runs of a model take besides its weights, for a latent of `a` pixels (height x width):
 * `rows * (linear * a + square * a^2)` for a U-Net run, the same of one row for a decode.
 */
export interface ActivationCurve {
  readonly unet: Curve;
  readonly decode: Curve;
}

export interface Curve {
  /** Bytes of feature maps for each latent pixel. */
  readonly linear: number;
  /** Bytes of attention scores for each pair of latent pixels. */
  readonly square: number;
}

/**
 * Heads of the finest self-attention times its share of the pixel pairs: SD 1.x has 8 heads and SD 2.x 5 at full size;
 * SDXL 10 and the embedded model 4 at a quarter of the pixels. Where a kernel fuses attention there are no such scores,
 * and what is measured at warm-up corrects the guess.
 */
const ATTENTION_HEADS: Readonly<Record<string, number>> = { sd: 4 / 16, sd1: 8, sd2: 5, sdxl: 10 / 16 };
/** The scores and their softmax, in float32. */
const SCORE_BYTES = 2 * Float32Array.BYTES_PER_ELEMENT;

/** SD 1.5, from which other sizes are scaled: weights grow with the square of the channels. */
const SD15 = {
  unet: { bytes: 2.5 * 2 ** 30, channels: 320 }, // between float16's 1.7 and float32's 3.4
  vaeDecoder: { bytes: 150 * 2 ** 20, channels: 128 },
};
/**
 * float32 feature maps that are alive at once at full size, in units of the first block's channels: three skip
 * connections, a concatenation of two maps, and a convolution's input, output and scratch; as much again for the
 * coarser levels.
 */
const UNET_MAPS = 25;
const DECODE_MAPS = 3;
const PIXELS_PER_LATENT = 64;

/** A guess from the model's family and the size of its files, for as long as nothing was measured. */
export function activationPrior(family: string, { unet, vaeDecoder }: NetworkBytes): ActivationCurve {
  const unetChannels = SD15.unet.channels * Math.sqrt(unet / SD15.unet.bytes);
  const decodeChannels = SD15.vaeDecoder.channels * Math.sqrt(vaeDecoder / SD15.vaeDecoder.bytes);
  return {
    unet: {
      linear: UNET_MAPS * unetChannels * Float32Array.BYTES_PER_ELEMENT,
      square: (ATTENTION_HEADS[family] ?? ATTENTION_HEADS["sd1"]!) * SCORE_BYTES,
    },
    decode: {
      linear: DECODE_MAPS * decodeChannels * PIXELS_PER_LATENT * Float32Array.BYTES_PER_ELEMENT,
      square: family === "sd" ? 0 : SCORE_BYTES, // one head in the middle of the published decoders
    },
  };
}

/** What one row takes, or one decode. */
export function curveBytes({ linear, square }: Curve, { height, width }: LatentShape): number {
  const area = height * width;
  return area * (linear + square * area);
}
