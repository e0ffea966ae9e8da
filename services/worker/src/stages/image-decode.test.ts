import { setImmediate as nextTurn } from "node:timers/promises";
import { Deadline, ManualClock, ServingError } from "@atelier/core";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import {
  DECODE_TILE_PIXELS,
  type DecodeJob,
  type DecodeLimits,
  type DecodeOutcome,
  type EncodeImage,
  ImageDecodeStage,
  toRgb,
  type VaeDecoder,
} from "./image-decode.ts";
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
    const { stage, runs } = imageDecodeStage();
    stage.enqueue(job("a", { latent: latentOf(1), scaling: { scalingFactor: 0.5, shiftFactor: 0.25 } }));
    await stage.step();
    expect(runs).toEqual([{ values: [2.25], wide: false }]);
  });

  it("decodes oldest first, as many of one model and shape together as a run takes", async () => {
    const { stage, runs, done } = imageDecodeStage({ batchMax: 2 });
    stage.enqueue(job("a", { latent: latentOf(1), wide: true }));
    stage.enqueue(job("other shape", { latent: latentOf(2, 2), shape: { channels: 1, height: 1, width: 2 } }));
    stage.enqueue(job("b", { latent: latentOf(3) }));
    stage.enqueue(job("other model", { latent: latentOf(4), model: "large" }));
    stage.enqueue(job("c", { latent: latentOf(5) }));
    while (stage.busy) await stage.step();
    await stage.settled();
    expect(runs.map(({ values }) => values)).toEqual([[1, 3], [2], [4], [5]]);
    expect(runs[0]!.wide).toBe(false); // "b" does not have the device to itself
    expect(done).toEqual(["a", "b", "other shape", "other model", "c"]);
  });

  it("decodes the most urgent class first, beside nobody of another, and bulk work one by one", async () => {
    const { stage, runs } = imageDecodeStage({ batchMax: 4 });
    const classes = ["bulk", "standard", "bulk", "interactive", "standard", "interactive"] as const;
    for (const [i, priorityClass] of classes.entries()) {
      stage.enqueue(job(String(i), { latent: latentOf(i), priorityClass }));
    }
    while (stage.busy) await stage.step();
    await stage.settled();
    expect(runs.map(({ values }) => values)).toEqual([[3, 5], [1, 4], [0], [2]]);
  });

  it("tells each image its part of a run, which takes a part of the device where it is not wide", async () => {
    const { stage, deviceMs } = imageDecodeStage({ batchMax: 2 });
    for (const id of ["a", "b"]) stage.enqueue(job(id, { wide: true }));
    stage.enqueue(job("c"));
    while (stage.busy) await stage.step();
    await stage.settled();
    expect(deviceMs).toEqual([60, 60, 30]);
  });

  it("decodes on while files are being written, up to a limit", async () => {
    const files = Array.from({ length: 3 }, () => Promise.withResolvers<void>());
    const begun: number[] = [];
    const encode: EncodeImage = async (image, encoding) => {
      begun.push(begun.length);
      await files[begun.length - 1]!.promise;
      return encodeImage(image, encoding);
    };
    const { stage, runs, done } = imageDecodeStage({ encode, encodingMax: 2 });
    for (const id of ["a", "b", "c"]) stage.enqueue(job(id));
    await stage.step();
    await stage.step();
    expect([runs.length, begun.length, done]).toEqual([2, 2, []]);
    const third = stage.step();
    await nextTurn();
    expect(runs).toHaveLength(2); // waits for a file
    files[1]!.resolve();
    await third;
    expect(done).toEqual(["b"]);
    files[0]!.resolve();
    files[2]!.resolve();
    await stage.settled();
    expect(done.toSorted()).toEqual(["a", "b", "c"]);
  });

  it("fails the image whose pixels are NaN, and no other of its run", async () => {
    const { stage, done, failed } = imageDecodeStage({ batchMax: 3 });
    for (const id of ["a", "b"]) stage.enqueue(job(id));
    stage.enqueue(job("broken", { latent: latentOf(Number.NaN) }));
    await stage.step();
    await stage.settled();
    expect(done).toEqual(["a", "b"]);
    expect(failed).toEqual(["broken NUMERIC_FAILURE"]);
  });

  it("decodes one by one, and then in tiles, what there is no memory for", async () => {
    const large = { channels: 1, height: 8, width: 16 };
    const { stage, runs, done, failed, tiled } = imageDecodeStage({ batchMax: 2, placesMax: 64 });
    stage.enqueue(job("a", { latent: new Float32Array(128), shape: large, tile: 8 }));
    stage.enqueue(job("b", { latent: new Float32Array(128), shape: large, tile: 8 }));
    stage.enqueue(job("hopeless", { latent: new Float32Array(128), shape: large, tile: 12 }));
    while (stage.busy) await stage.step();
    await stage.settled();
    expect(done).toEqual(["a", "b"]);
    expect(tiled).toEqual(["a", "b"]);
    expect(failed).toEqual(["hopeless OUT_OF_MEMORY"]);
    expect(runs.every(({ values }) => values.length === 1)).toBe(true);
  });

  it("decodes in tiles above the size configured, where the picture is larger than a tile", async () => {
    const { stage, tiled, done } = imageDecodeStage({ batchMax: 2, wholePixelsMax: 64 * 64 });
    const shape = { channels: 1, height: 8, width: 16 };
    stage.enqueue(job("larger", { latent: new Float32Array(128), shape, tile: 8 }));
    stage.enqueue(job("one tile", { latent: new Float32Array(128), shape, tile: 16 }));
    stage.enqueue(job("small", { tile: 8 }));
    while (stage.busy) await stage.step();
    await stage.settled();
    expect(done).toHaveLength(3);
    expect(tiled).toEqual(["larger"]);
  });

  it("drops what was cancelled or is too late, without decoding it", async () => {
    const clock = new ManualClock();
    const { stage, runs, failed } = imageDecodeStage();
    stage.enqueue(job("cancelled"));
    stage.enqueue(job("late", { deadline: Deadline.after(clock, 5) }));
    stage.cancel("cancelled");
    clock.advance(5);
    await stage.step();
    expect(failed).toEqual(["cancelled CANCELLED", "late DEADLINE_EXCEEDED"]);
    expect(runs).toEqual([]);
    expect(stage.busy).toBe(false);
  });

  it("refuses a latent when the waiting room is full", () => {
    const { stage } = imageDecodeStage({ waitingMax: 1 });
    stage.enqueue(job("a"));
    expect(() => stage.enqueue(job("b"))).toThrow(/OVERLOADED.*1 latents/);
  });
});

interface StageOptions extends Partial<DecodeLimits> {
  readonly encode?: EncodeImage;
  /** Latent places that the device has memory for. */
  readonly placesMax?: number;
}

/** A stage whose decoder paints every pixel of a latent in its first number. */
function imageDecodeStage({ encode = encodeImage, placesMax = Infinity, ...limits }: StageOptions = {}) {
  const runs: { values: number[]; wide: boolean }[] = [];
  const done: string[] = [];
  const tiled: string[] = [];
  const failed: string[] = [];
  const deviceMs: number[] = [];
  const clock = new ManualClock();
  const vae: VaeDecoder = {
    async decode({ latents, shape, wide }) {
      const places = shape.height * shape.width;
      if (latents.length * places > placesMax) throw new ServingError("OUT_OF_MEMORY", "the device is full");
      runs.push({ values: latents.map((latent) => latent[0]!), wide });
      clock.advance(120);
      return latents.map((latent) => ({
        pixels: new Float32Array(3 * 64 * places).fill(latent[0]!),
        width: shape.width * 8,
        height: shape.height * 8,
      }));
    },
  };
  const onOutcome = (outcome: DecodeOutcome) => {
    const { id } = outcome.job;
    if (outcome.error !== undefined) failed.push(`${id} ${outcome.error.code}`);
    else done.push(id);
    if (outcome.error === undefined && outcome.decoded.tiled) tiled.push(id);
    if (outcome.error === undefined) deviceMs.push(outcome.decoded.deviceMs);
  };
  const defaults = { waitingMax: 10, batchMax: 1, encodingMax: 4, wholePixelsMax: DECODE_TILE_PIXELS };
  return {
    stage: new ImageDecodeStage({ vae, clock, narrowShare: 0.25, encode, onOutcome }, { ...defaults, ...limits }),
    runs,
    done,
    tiled,
    failed,
    deviceMs,
  };
}

function latentOf(value: number, size = 1): Float32Array {
  return new Float32Array(size).fill(value);
}

function job(id: string, options: Partial<DecodeJob> = {}): DecodeJob {
  return {
    id,
    model: "tiny",
    latent: latentOf(0),
    shape: { channels: 1, height: 1, width: 1 },
    scaling: { scalingFactor: 1, shiftFactor: 0 },
    tile: 32,
    wide: false,
    priorityClass: "standard",
    encoding: { format: "raw", quality: 90 },
    deadline: Deadline.after(new ManualClock(), 1000),
    ...options,
  };
}
