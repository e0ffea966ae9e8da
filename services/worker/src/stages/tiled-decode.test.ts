import { describe, expect, it } from "vitest";
import { decodeInTiles } from "./tiled-decode.ts";

describe("decodeInTiles", () => {
  it("gives the whole picture where every tile is decoded alike", async () => {
    const shape = { channels: 1, height: 19, width: 34 };
    const latent = Float32Array.from({ length: 19 * 34 }, (_, i) => Math.sin(i));
    const whole = await enlarge(latent, shape);
    const tiled = await decodeInTiles(latent, shape, 8, enlarge);
    expect([tiled.width, tiled.height]).toEqual([272, 152]);
    const differences = tiled.pixels.map((value, i) => Math.abs(value - whole.pixels[i]!));
    expect(differences.reduce((largest, value) => Math.max(largest, value))).toBeLessThan(1e-6);
  });

  it("fades from one tile to the next, along a row and down a column", async () => {
    // Tiles of tone 0, 1, 2, ... in the order in which they are decoded; 6 places apart, 2 shared.
    let tone = 0;
    const shape = { channels: 1, height: 8, width: 12 };
    const { pixels, width } = await decodeInTiles(
      new Float32Array(96),
      shape,
      8,
      async (_, { height, width: wide }) => ({
        pixels: new Float32Array(3 * 64 * height * wide).fill(tone++),
        width: wide * 8,
        height: height * 8,
      }),
    );
    const row = [...pixels.subarray(0, width)];
    expect(row.slice(0, 48)).toEqual(Array.from({ length: 48 }, () => 0));
    expect(row.slice(48, 64)).toEqual(Array.from({ length: 16 }, (_, x) => x / 16));
    expect(row.slice(64)).toEqual(Array.from({ length: 32 }, () => 1));
    const down = Array.from({ length: 64 }, (_, y) => pixels[y * width]!);
    expect(down.slice(0, 48)).toEqual(Array.from({ length: 48 }, () => 0));
    expect(down.slice(48)).toEqual(Array.from({ length: 16 }, (_, y) => (y / 16) * 2)); // the third tile
  });

  it("gives the decoder squares of the size asked for, and what is left at the edges", async () => {
    const shapes: string[] = [];
    const shape = { channels: 1, height: 8, width: 13 };
    await decodeInTiles(new Float32Array(8 * 13), shape, 8, (latent, part) => {
      shapes.push(`${part.height}x${part.width}`);
      return enlarge(latent, part);
    });
    expect(shapes).toEqual(["8x8", "8x7", "8x1", "2x8", "2x7", "2x1"]);
  });
});

/** A decoder without neighbourhood: each place becomes 8x8 pixels. */
async function enlarge(latent: Float32Array, { height, width }: { height: number; width: number }) {
  const plane = Float32Array.from({ length: height * width * 64 }, (_, i) => {
    const [x, y] = [i % (width * 8), Math.floor(i / (width * 8))];
    return latent[(y >> 3) * width + (x >> 3)]!;
  });
  const pixels = new Float32Array(plane.length * 3);
  for (let channel = 0; channel < 3; channel++) pixels.set(plane, channel * plane.length);
  return { pixels, width: width * 8, height: height * 8 };
}
