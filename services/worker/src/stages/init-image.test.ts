import { crc32, deflateSync } from "node:zlib";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import { INIT_IMAGE_BYTES_MAX, readInitImage } from "./init-image.ts";

const SIZE = { width: 16, height: 8 };
const RED = { r: 255, g: 0, b: 0 };
const BLUE = { r: 0, g: 0, b: 255 };

describe("readInitImage", () => {
  it("takes a picture of the size asked for as it is", async () => {
    const data = Uint8Array.from({ length: 16 * 8 * 3 }, (_, i) => (i * 7) % 256);
    const png = await sharp(data, { raw: { ...SIZE, channels: 3 } })
      .png()
      .toBuffer();
    const image = await readInitImage(png, SIZE);
    expect(image).toMatchObject(SIZE);
    expect([...image.data]).toEqual([...data]);
  });

  it.each(["png", "jpeg", "webp"] as const)(
    "reads %s and covers the size, cutting what is too long",
    async (format) => {
      // A red square in the middle of a blue band: of 4:1, the ends go.
      const band = await solid(64, 16, BLUE)
        .composite([{ input: await solid(32, 16, RED).png().toBuffer(), left: 16, top: 0 }])
        .toFormat(format, { quality: 100 })
        .toBuffer();
      const { data, width, height } = await readInitImage(band, SIZE);
      expect({ width, height }).toEqual(SIZE);
      expect(near(pixel(data, 8, 4), [255, 0, 0])).toBe(true);
      expect(near(pixel(data, 2, 4), [255, 0, 0])).toBe(true); // the red half fills the whole
    },
  );

  it("turns a photograph as its EXIF orientation says", async () => {
    // Stored lying: red left, blue right. Orientation 6 turns it clockwise by 90 degrees: red comes to the top.
    const lying = await solid(16, 8, BLUE)
      .composite([{ input: await solid(8, 8, RED).png().toBuffer(), left: 0, top: 0 }])
      .withMetadata({ orientation: 6 })
      .jpeg({ quality: 100, chromaSubsampling: "4:4:4" })
      .toBuffer();
    const { data } = await readInitImage(lying, { width: 8, height: 16 });
    expect(near(pixel(data, 4, 3, 8), [255, 0, 0])).toBe(true);
    expect(near(pixel(data, 4, 12, 8), [0, 0, 255])).toBe(true);
  });

  it("lays transparent parts on white, grey and 16 bits becoming RGB of 8", async () => {
    const clear = await sharp({ create: { ...SIZE, channels: 4, background: { ...RED, alpha: 0 } } })
      .png()
      .toBuffer();
    expect(pixel((await readInitImage(clear, SIZE)).data, 3, 3)).toEqual([255, 255, 255]);
    const grey = await solid(16, 8, { r: 100, g: 100, b: 100 }).toColourspace("grey16").png().toBuffer();
    expect(await sharp(grey).metadata()).toMatchObject({ channels: 1, depth: "ushort" });
    expect(pixel((await readInitImage(grey, SIZE)).data, 3, 3)).toEqual([100, 100, 100]);
  });

  it.each([
    ["text", async () => Buffer.from("not a picture, however long it may be"), /no PNG, JPEG or WebP/],
    ["nothing but a PNG's first bytes", async () => Buffer.from("89504e470d0a1a0a", "hex"), /cannot be read/],
    ["a truncated PNG", async () => (await noise().png().toBuffer()).subarray(0, 2000), /cannot be read/],
    ["a truncated JPEG", async () => (await noise().jpeg().toBuffer()).subarray(0, 2000), /cannot be read/],
    ["a truncated WebP", async () => (await noise().webp().toBuffer()).subarray(0, 2000), /cannot be read/],
    ["a PNG with a flipped bit", async () => flipped(await noise().png().toBuffer()), /cannot be read/],
    ["a picture of another kind", async () => Buffer.from("<svg xmlns='http://www.w3.org/2000/svg'/>"), /no PNG/],
    ["a GIF", () => noise().gif().toBuffer(), /no PNG, JPEG or WebP/],
    ["50 MB", async () => Buffer.alloc(50_000_000, 0xff), /has 50000000 bytes; at most 33554432/],
    ["a bomb of 30000x30000", async () => bomb(30_000), /is 30000x30000, 900000000 pixels; at most 50000000/],
  ])("refuses %s, saying what is wrong", async (_, make, message) => {
    const bytes = await make();
    await expect(readInitImage(bytes, SIZE)).rejects.toMatchObject({
      code: "INVALID_REQUEST",
      field: "init_image",
      message: expect.stringMatching(message),
    });
    expect(INIT_IMAGE_BYTES_MAX).toBe(33_554_432);
  });
});

function solid(width: number, height: number, background: { r: number; g: number; b: number }) {
  return sharp({ create: { width, height, channels: 3, background } });
}

function noise() {
  return sharp({
    create: { width: 64, height: 64, channels: 3, background: RED, noise: { type: "gaussian", mean: 128, sigma: 60 } },
  });
}

function flipped(bytes: Buffer): Buffer {
  bytes[bytes.length >> 1]! ^= 1;
  return bytes;
}

/** A PNG of `side` x `side` white pixels of 1 bit: 900 million of them in 110 KB. */
function bomb(side: number): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header.set([1, 0], 8);
  const chunk = (type: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const ends = Buffer.alloc(8);
    ends.writeUInt32BE(data.length, 0);
    ends.writeUInt32BE(crc32(body), 4);
    return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
  };
  const lines = Buffer.alloc(side * Math.ceil(side / 8 + 1), 0xff);
  return Buffer.concat([
    Buffer.from("89504e470d0a1a0a", "hex"),
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(lines, { level: 1 })),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function pixel(data: Uint8Array, x: number, y: number, width = SIZE.width): number[] {
  return [...data.subarray((y * width + x) * 3, (y * width + x) * 3 + 3)];
}

function near(actual: readonly number[], expected: readonly number[]): boolean {
  return actual.every((value, i) => Math.abs(value - expected[i]!) <= 8);
}
