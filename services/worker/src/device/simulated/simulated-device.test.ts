import { join } from "node:path";
import { seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { TEST_BUNDLE } from "../../testing/test-bundle.ts";
import { type NetworkFiles, openDevice } from "../device.ts";
import { type Canvas, mark } from "./mark.ts";

const FILES: NetworkFiles = {
  model: "m",
  family: "sd1",
  latentChannels: 4,
  textEncoders: [],
  unetPath: join(TEST_BUNDLE, "unet/model.onnx"),
  vaeDecoderPath: join(TEST_BUNDLE, "vae_decoder/model.onnx"),
};
const SHAPE = { channels: 4, height: 16, width: 24 };

describe("the mark of a simulated picture", () => {
  it("says SIMULATED and the GPU's name, as large as fits, on a band from edge to edge", () => {
    expect(drawing(53, 32, "A10")).toEqual([
      "##..##..##..##..##..##..##..##..##..##..##..##..##..#",
      "#..##..##..##..##..##..##..##..##..##..##..##..##..##",
      "",
      "",
      "",
      "",
      ".....................................................",
      ".....................................................",
      ".####..###..#...#.#...#.#......###..#####.#####.####.",
      "#.......#...##.##.#...#.#.....#...#...#...#.....#...#",
      "#.......#...#.#.#.#...#.#.....#...#...#...#.....#...#",
      ".###....#...#.#.#.#...#.#.....#####...#...####..#...#",
      "....#...#...#...#.#...#.#.....#...#...#...#.....#...#",
      "....#...#...#...#.#...#.#.....#...#...#...#.....#...#",
      "####...###..#...#..###..#####.#...#...#...#####.####.",
      ".....................................................",
      ".....................................................",
      "...................###....#....###...................",
      "..................#...#..##...#...#..................",
      "..................#...#...#...#..##..................",
      "..................#####...#...#.#.#..................",
      "..................#...#...#...##..#..................",
      "..................#...#...#...#...#..................",
      "..................#...#..###...###...................",
      ".....................................................",
      ".....................................................",
      "",
      "",
      "",
      "",
      "#..##..##..##..##..##..##..##..##..##..##..##..##..##",
      "##..##..##..##..##..##..##..##..##..##..##..##..##..#",
    ]);
    expect(drawing(128, 64, "RTX 4090").filter((row) => row.includes("#"))).toHaveLength(2 * 4 + 2 * 14);
  });
});

describe("the simulated device", () => {
  it("marks every picture it decodes, and still shows which latent it was", async () => {
    const decoder = await openDevice({ kind: "simulated", gpu: "h100" }).openVaeDecoder(FILES);
    const latents = [latent(1), latent(2)];
    const [first, second] = await decoder.decode({ model: "m", latents, shape: SHAPE, wide: true });
    expect([first!.width, first!.height]).toEqual([192, 128]);
    expect(share(first!.pixels, (x) => Math.abs(x) === 1)).toBeGreaterThan(0.3); // black and white are the mark's alone
    expect(share(first!.pixels, (x, i) => x === second!.pixels[i])).toBeLessThan(0.6);
    const [again] = await decoder.decode({ model: "m", latents: [latent(1)], shape: SHAPE, wide: true });
    expect(again!.pixels).toEqual(first!.pixels);
  });
});

function drawing(width: number, height: number, name: string): string[] {
  const rows = Array.from({ length: height }, () => new Array<string>(width).fill(" "));
  const canvas: Canvas = { width, height, set: (x, y, level) => (rows[y]![x] = level === 1 ? "#" : ".") };
  mark(canvas, name);
  return rows.map((row) => row.join("").trimEnd());
}

function latent(seed: number): Float32Array {
  const random = seededRandom(seed);
  return Float32Array.from({ length: 4 * 16 * 24 }, () => 4 * random.next() - 2);
}

function share(values: Float32Array, fits: (value: number, i: number) => boolean): number {
  return values.filter(fits).length / values.length;
}
