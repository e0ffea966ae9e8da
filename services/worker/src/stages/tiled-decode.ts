import { invariant } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { DecodedPixels } from "./image-decode.ts";

/** Pixels of one place of a latent, per side. */
const VAE_FACTOR = 8;
/** Share of a tile that its neighbour covers as well. */
const OVERLAP = 0.25;

/** Decodes one tile; the pixels hold until the next call. */
export type DecodeTile = (latent: Float32Array, shape: LatentShape) => Promise<DecodedPixels>;

/**
 * Decodes a latent in overlapping squares, so that the memory for it does not grow with the picture. Where tiles
 * overlap, one fades into the other linearly.
 *
 * The result is near what a whole decode gives, not equal to it: the decoder's GroupNorm takes its means over the tile
 * instead of the picture, so tiles may differ a little in tone. `docs/decisions/0005-tiled-decode.md` has the difference.
 *
 * Shapes: `latent` is [channels, height, width], flat; a tile is [channels, tile, tile] or less at the right and lower
 * edge. `tile` is a multiple of 4 and at least 8. Allocates the picture and two rows of tiles.
 *
 * Source: `AutoencoderKL.tiled_decode` of diffusers, models/autoencoders/autoencoder_kl.py; the same numbers.
 */
export async function decodeInTiles(
  latent: Float32Array,
  shape: LatentShape,
  tile: number,
  decode: DecodeTile,
): Promise<DecodedPixels> {
  invariant(tile >= 8 && tile % 4 === 0, `tiles of ${tile} places overlap by a quarter`);
  const step = tile * (1 - OVERLAP);
  const fade = tile * OVERLAP * VAE_FACTOR;
  const kept = step * VAE_FACTOR;
  const picture = blank(shape.width * VAE_FACTOR, shape.height * VAE_FACTOR);

  let above: DecodedPixels[] = [];
  for (let top = 0, row = 0; top < shape.height; top += step, row++) {
    const line: DecodedPixels[] = [];
    for (let left = 0, column = 0; left < shape.width; left += step, column++) {
      const part = cut(latent, shape, { top, left, side: tile });
      const decoded = await decode(part.latent, part.shape);
      const pixels = { ...decoded, pixels: decoded.pixels.slice() };
      if (row > 0) fadeDown(above[column]!, pixels, fade);
      if (column > 0) fadeRight(line[column - 1]!, pixels, fade);
      line.push(pixels);
      paste(pixels, picture, { top: row * kept, left: column * kept, side: kept });
    }
    above = line;
  }
  return picture;
}

/** Whether `shape` is larger than one tile. */
export function needsTiles({ height, width }: LatentShape, tile: number): boolean {
  return height > tile || width > tile;
}

interface Square {
  readonly top: number;
  readonly left: number;
  readonly side: number;
}

function cut(latent: Float32Array, shape: LatentShape, { top, left, side }: Square) {
  const height = Math.min(side, shape.height - top);
  const width = Math.min(side, shape.width - left);
  const part = new Float32Array(shape.channels * height * width);
  for (let channel = 0; channel < shape.channels; channel++) {
    for (let y = 0; y < height; y++) {
      const from = (channel * shape.height + top + y) * shape.width + left;
      part.set(latent.subarray(from, from + width), (channel * height + y) * width);
    }
  }
  return { latent: part, shape: { channels: shape.channels, height, width } };
}

/** The upper lines of `tile` become those of the lower end of `above`, less and less of them. */
function fadeDown(above: DecodedPixels, tile: DecodedPixels, lines: number): void {
  const extent = Math.min(above.height, tile.height, lines);
  forEachPixel(tile.width, extent, (channel, y, x) => {
    const of = (channel * above.height + above.height - extent + y) * above.width + x;
    const to = (channel * tile.height + y) * tile.width + x;
    tile.pixels[to] = mixed(above.pixels[of]!, tile.pixels[to]!, y / extent);
  });
}

function fadeRight(before: DecodedPixels, tile: DecodedPixels, columns: number): void {
  const extent = Math.min(before.width, tile.width, columns);
  forEachPixel(extent, tile.height, (channel, y, x) => {
    const of = (channel * before.height + y) * before.width + before.width - extent + x;
    const to = (channel * tile.height + y) * tile.width + x;
    tile.pixels[to] = mixed(before.pixels[of]!, tile.pixels[to]!, x / extent);
  });
}

function forEachPixel(width: number, height: number, visit: (channel: number, y: number, x: number) => void): void {
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) visit(channel, y, x);
  }
}

function mixed(from: number, to: number, share: number): number {
  return from * (1 - share) + to * share;
}

function paste(tile: DecodedPixels, picture: DecodedPixels, { top, left, side }: Square): void {
  const height = Math.min(tile.height, side);
  const width = Math.min(tile.width, side);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < height; y++) {
      const from = (channel * tile.height + y) * tile.width;
      picture.pixels.set(
        tile.pixels.subarray(from, from + width),
        (channel * picture.height + top + y) * picture.width + left,
      );
    }
  }
}

function blank(width: number, height: number): DecodedPixels {
  return { pixels: new Float32Array(3 * width * height), width, height };
}
