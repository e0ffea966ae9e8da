import { Deadline, ManualClock } from "@atelier/core";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import { type DecodeJob, ImageDecodeStage, toRgb } from "./image-decode.ts";
import { encodeImage } from "./image-file.ts";

describe("toRgb", () => {
  it("maps -1..1 to 0..255, clamps what lies outside, and puts the planes' pixels side by side", () => {
    const pixels = Float32Array.of(-1, 1, /* green */ 0, 0.5, /* blue */ -3, 3);
    expect([...toRgb({ pixels, width: 2, height: 1 }).data]).toEqual([0, 128, 0, 255, 191, 255]);
  });

  it("fails on NaN rather than paint it black", () => {
    const pixels = Float32Array.of(0, Number.NaN, 0);
    expect(() => toRgb({ pixels, width: 1, height: 1 })).toThrow(/NUMERIC_FAILURE/);
  });
});

describe("encodeImage", () => {
  const image = { data: Uint8Array.from({ length: 16 * 8 * 3 }, (_, i) => (i * 7) % 256), width: 16, height: 8 };

  it("writes a PNG that holds the very pixels", async () => {
    const { data, mediaType } = await encodeImage(image, { format: "png", quality: 90 });
    const read = await sharp(data).raw().toBuffer({ resolveWithObject: true });
    expect(mediaType).toBe("image/png");
    expect(read.info).toMatchObject({ width: 16, height: 8, channels: 3 });
    expect([...read.data]).toEqual([...image.data]);
  });

  it.each(["jpeg", "webp"] as const)("writes a %s of that size", async (format) => {
    const { data, mediaType } = await encodeImage(image, { format, quality: 90 });
    expect(mediaType).toBe(`image/${format}`);
    expect(await sharp(data).metadata()).toMatchObject({ format, width: 16, height: 8 });
  });

  it("gives bytes that can be transferred to another thread", async () => {
    const { data } = await encodeImage(image, { format: "png", quality: 90 });
    const size = data.byteLength;
    const moved = structuredClone(data, { transfer: [data.buffer] });
    expect(moved.byteLength).toBe(size);
    expect(data.byteLength).toBe(0);
  });
});

describe("ImageDecodeStage", () => {
  it("undoes the latent's scaling and shift before the decoder", async () => {
    const { stage, decoded } = imageDecodeStage();
    stage.enqueue(job("a", { latent: Float32Array.of(1, 2), scaling: { scalingFactor: 0.5, shiftFactor: 0.25 } }));
    await stage.step();
    expect(decoded).toEqual([[2.25, 4.25]]);
  });

  it("decodes oldest first", async () => {
    const { stage } = imageDecodeStage();
    for (const id of ["a", "b"]) stage.enqueue(job(id));
    expect((await stage.step())?.job.id).toBe("a");
    expect((await stage.step())?.job.id).toBe("b");
    expect(await stage.step()).toBeUndefined();
  });

  it("drops what was cancelled or is too late, without decoding it", async () => {
    const clock = new ManualClock();
    const { stage, decoded } = imageDecodeStage();
    stage.enqueue(job("cancelled"));
    stage.enqueue(job("late", { deadline: Deadline.after(clock, 5) }));
    stage.cancel("cancelled");
    clock.advance(5);
    expect((await stage.step())?.error?.code).toBe("CANCELLED");
    expect((await stage.step())?.error?.code).toBe("DEADLINE_EXCEEDED");
    expect(decoded).toEqual([]);
  });

  it("refuses a latent when the waiting room is full", () => {
    const { stage } = imageDecodeStage({ waitingMax: 1 });
    stage.enqueue(job("a"));
    expect(() => stage.enqueue(job("b"))).toThrow(/OVERLOADED.*1 latents/);
  });
});

function imageDecodeStage({ waitingMax = 10 } = {}) {
  const decoded: number[][] = [];
  const vae = {
    async decode({ latents }: { latents: readonly Float32Array[] }) {
      decoded.push([...latents[0]!]);
      return [{ pixels: new Float32Array(3), width: 1, height: 1 }];
    },
  };
  return { stage: new ImageDecodeStage(vae, encodeImage, { waitingMax }), decoded };
}

function job(id: string, options: Partial<DecodeJob> = {}): DecodeJob {
  return {
    id,
    model: "tiny",
    latent: new Float32Array(4),
    shape: { channels: 4, height: 1, width: 1 },
    scaling: { scalingFactor: 1, shiftFactor: 0 },
    encoding: { format: "raw", quality: 90 },
    deadline: Deadline.after(new ManualClock(), 1000),
    ...options,
  };
}
