import { crc32, deflateSync } from "node:zlib";
import { invariant } from "@atelier/core";
import { type LatentShape, latentSize } from "@atelier/diffusion";
import type { RgbImage } from "./image-file.ts";

type Rgb = readonly [number, number, number];

/** What a latent looks like, roughly: pixel = bias + latent * matrix, one row for each latent channel, colours 0..1. */
export interface PreviewMap {
  readonly matrix: readonly Rgb[];
  readonly bias: Rgb;
}

/**
 * For latents as the U-Net of Stable Diffusion 1 and 2 sees them (scaled by 0.18215).
 * Source: keturn, "Decoding latents to RGB without upscaling", discuss.huggingface.co/t/23204, fitted on v1.4. It gives
 * colours of -1..1; here halved and moved to 0..1.
 */
const STABLE_DIFFUSION: PreviewMap = {
  matrix: [
    [0.149, 0.1035, 0.104],
    [0.0935, 0.143, 0.0865],
    [-0.079, 0.0945, 0.132],
    [-0.092, -0.1355, -0.2365],
  ],
  bias: [0.5, 0.5, 0.5],
};

/**
 * For latents of Stable Diffusion XL (scaled by 0.13025).
 * Source: T. A. Vass, "Explaining the SDXL latent space", huggingface.co/blog, as diffusers' documentation of pipeline
 * callbacks repeats it. It gives colours of 0..255; here divided by 255.
 */
const STABLE_DIFFUSION_XL: PreviewMap = {
  matrix: [
    [60 / 255, 60 / 255, 60 / 255],
    [-60 / 255, -5 / 255, 10 / 255],
    [25 / 255, 15 / 255, -5 / 255],
    [-70 / 255, -50 / 255, -35 / 255],
  ],
  bias: [150 / 255, 140 / 255, 130 / 255],
};

/** By a manifest's family. */
const PUBLISHED: Readonly<Record<string, PreviewMap>> = {
  sd: STABLE_DIFFUSION,
  sd1: STABLE_DIFFUSION,
  sd2: STABLE_DIFFUSION,
  sdxl: STABLE_DIFFUSION_XL,
};

export interface PreviewSource {
  readonly manifest: {
    readonly family: string;
    readonly previewMatrix?: readonly Rgb[] | undefined;
    readonly previewBias?: Rgb | undefined;
  };
  readonly latentChannels: number;
}

/** The bundle's own map, or the one published for its family; undefined where there is neither. */
export function previewMapOf({ manifest, latentChannels }: PreviewSource): PreviewMap | undefined {
  const { previewMatrix: matrix, previewBias: bias, family } = manifest;
  const map = matrix !== undefined && bias !== undefined ? { matrix, bias } : PUBLISHED[family];
  return map?.matrix.length === latentChannels ? map : undefined;
}

/** Pixels along the longer side of a preview. */
const SIDE_MAX = 128;

/**
 * A small picture of a latent: one pixel for each place of it, or for each square of places where it is large.
 *
 * Shapes: from [channels, height, width] to [height, width, 3]. Allocates the result and as many floats.
 */
export function drawPreview(latent: Float32Array, shape: LatentShape, { matrix, bias }: PreviewMap): RgbImage {
  invariant(latent.length === latentSize(shape), "a latent has the shape that it claims");
  invariant(matrix.length === shape.channels, "the map has a row for each latent channel");
  const side = Math.ceil(Math.max(shape.height, shape.width) / SIDE_MAX);
  const { small, height, width } = side === 1 ? { small: latent, ...shape } : averageSquares(latent, shape, side);
  const places = height * width;
  const data = new Uint8ClampedArray(places * 3); // clamps, NaN to 0
  for (let i = 0; i < places; i++) {
    let [red, green, blue] = bias;
    for (let channel = 0; channel < shape.channels; channel++) {
      const value = small[channel * places + i]!;
      const row = matrix[channel]!;
      red += value * row[0];
      green += value * row[1];
      blue += value * row[2];
    }
    data[i * 3] = red * 255;
    data[i * 3 + 1] = green * 255;
    data[i * 3 + 2] = blue * 255;
  }
  return { data: new Uint8Array(data.buffer), width, height };
}

/** Means of squares of `side` by `side` places; those at the right and lower edge over what there is. */
function averageSquares(latent: Float32Array, shape: LatentShape, side: number) {
  const width = Math.ceil(shape.width / side);
  const height = Math.ceil(shape.height / side);
  const small = new Float32Array(shape.channels * height * width);
  const edge = (count: number, at: number) => Math.min(side, count - at * side);
  for (let i = 0; i < latent.length; i++) {
    const x = Math.floor((i % shape.width) / side);
    const line = Math.floor(i / shape.width);
    const y = Math.floor((line % shape.height) / side);
    const channel = Math.floor(line / shape.height);
    const places = edge(shape.width, x) * edge(shape.height, y);
    small[(channel * height + y) * width + x]! += latent[i]! / places;
  }
  return { small, height, width };
}

/**
 * The PNG of a preview, at once: sharp would answer later, when further steps are done and told of, and a few kilobytes
 * are deflated in the time that it takes to ask.
 *
 * Source: PNG (third edition), W3C, sections 5 and 11.2.
 */
export function encodePreview({ data, width, height }: RgbImage): Uint8Array {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2], 8); // 8 bits for each of red, green and blue; deflate, no interlacing
  const stride = width * 3;
  const lines = Buffer.alloc(height * (1 + stride)); // a line begins with its filter: 0, none
  for (let y = 0; y < height; y++) lines.set(data.subarray(y * stride, (y + 1) * stride), y * (1 + stride) + 1);
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([
    signature,
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(lines, { level: 1 })),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  const check = Buffer.alloc(4);
  check.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, check]);
}
