import { latentSize } from "@atelier/diffusion";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import { drawPreview, encodePreview, type PreviewMap, previewMapOf } from "./preview.ts";

const MAP: PreviewMap = {
  matrix: [
    [0.1, 0, 0],
    [0, 0.2, 0],
    [0, 0, 0.4],
    [0, 0, 0],
  ],
  bias: [0.5, 0.5, 0],
};

describe("drawPreview", () => {
  it("makes one pixel of each place: the bias, and each channel by its row", () => {
    const latent = Float32Array.of(/* red */ 1, -1, /* green */ 0, 2, /* blue */ 1, 0, /* no colour */ 9, 9);
    const { data, width, height } = drawPreview(latent, { channels: 4, height: 1, width: 2 }, MAP);
    expect({ width, height }).toEqual({ width: 2, height: 1 });
    expect([...data]).toEqual([153, 128, 102, 102, 230, 0]);
  });

  it("clamps what lies outside 0..1", () => {
    const { data } = drawPreview(Float32Array.of(100, -100, -1, 0), { channels: 4, height: 1, width: 1 }, MAP);
    expect([...data]).toEqual([255, 0, 0]);
  });

  it("averages squares of a latent larger than 128 places, those at the edge over what there is", () => {
    const shape = { channels: 4, height: 2, width: 257 };
    const latent = new Float32Array(latentSize(shape));
    latent.set([1, 3], 0); // red of the first square, its upper half
    latent.set([1, 3], 257);
    latent[256] = 4; // the last square is one place wide
    latent[513] = 0;
    const { data, width, height } = drawPreview(latent, shape, MAP);
    expect({ width, height }).toEqual({ width: 86, height: 1 });
    expect(data[0]).toBe(Math.round((0.5 + 0.1 * (8 / 6)) * 255));
    expect(data[85 * 3]).toBe(Math.round((0.5 + 0.1 * 1) * 255));
  });
});

describe("encodePreview", () => {
  it("writes a PNG that holds the very pixels", async () => {
    const image = { data: Uint8Array.from({ length: 13 * 7 * 3 }, (_, i) => (i * 37) % 256), width: 13, height: 7 };
    const read = await sharp(encodePreview(image)).raw().toBuffer({ resolveWithObject: true });
    expect(read.info).toMatchObject({ width: 13, height: 7, channels: 3 });
    expect([...read.data]).toEqual([...image.data]);
  });
});

describe("previewMapOf", () => {
  it("takes the bundle's own map", () => {
    const manifest = { family: "sd", previewMatrix: MAP.matrix, previewBias: MAP.bias };
    expect(previewMapOf({ manifest, latentChannels: 4 })).toEqual(MAP);
  });

  // The published examples: latents of 0 are the middle grey of SD 1, and the slightly warm grey of SDXL.
  it.each([
    ["sd", [128, 128, 128], [204, 200, 186]],
    ["sd1", [128, 128, 128], [204, 200, 186]],
    ["sdxl", [150, 140, 130], [215, 219, 188]],
  ])("takes the published one of %s where it has none", (family, ofZero, ofSome) => {
    const map = previewMapOf({ manifest: { family }, latentChannels: 4 })!;
    const shape = { channels: 4, height: 1, width: 1 };
    expect([...drawPreview(new Float32Array(4), shape, map).data]).toEqual(ofZero);
    const some = family === "sdxl" ? Float32Array.of(1, 0.5, 1.4, 0) : Float32Array.of(1.4, 0.97, 0, 0);
    const drawn = [...drawPreview(some, shape, map).data];
    expect(drawn.every((value, i) => Math.abs(value - ofSome[i]!) <= 1)).toBe(true);
  });

  it("has none for a family that nobody has published one for, or latents of other channels", () => {
    expect(previewMapOf({ manifest: { family: "flux" }, latentChannels: 16 })).toBeUndefined();
    expect(previewMapOf({ manifest: { family: "sd" }, latentChannels: 16 })).toBeUndefined();
  });
});
