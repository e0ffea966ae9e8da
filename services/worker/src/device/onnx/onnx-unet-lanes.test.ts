import { stat } from "node:fs/promises";
import { join } from "node:path";
import { seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { UnetRow } from "../../stages/denoise.ts";
import { TEST_BUNDLE } from "../../testing/test-bundle.ts";
import { openDevice, type UnetLane } from "../device.ts";

const FILES = {
  model: "atelier-tiny",
  family: "sd",
  latentChannels: 4,
  textEncoders: [],
  unetPath: join(TEST_BUNDLE, "unet/model.onnx"),
  vaeDecoderPath: join(TEST_BUNDLE, "vae_decoder/model.onnx"),
};
const SHAPE = { channels: 4, height: 16, width: 24 };

describe("the lanes of a U-Net", () => {
  it("gives one and the same prediction on every lane, for every count of threads and whatever its batch mates", async () => {
    const rows = Array.from({ length: 5 }, (_, i) => randomRow(i));
    let alone: Float32Array[] | undefined;
    for (const threads of [1, 3]) {
      const lanes = await openUnet(threads);
      await lanes.openNarrow();
      for (const lane of [lanes.wide, ...lanes.narrow]) {
        alone ??= await eachAlone(lane, rows);
        expect(await eachAlone(lane, rows)).toEqual(alone);
        expect(await together(lane, rows)).toEqual(alone);
        expect(await together(lane, rows.toReversed())).toEqual(alone.toReversed());
      }
      await lanes.release();
    }
    expect(alone![0]).not.toEqual(alone![1]);
  });

  it("has one narrow lane for each thread, from when they are asked for; none for a single thread", async () => {
    const lanes = await openUnet(3);
    expect([lanes.wide.threads, lanes.narrow.length, lanes.narrowMax]).toEqual([3, 0, 3]);
    await lanes.openNarrow();
    expect(lanes.narrow.map((lane) => lane.threads)).toEqual([1, 1, 1]);
    await lanes.openNarrow();
    expect(lanes.narrow).toHaveLength(3);
    await lanes.release();

    const single = await openUnet(1);
    await single.openNarrow();
    expect([single.narrow.length, single.narrowMax]).toEqual([0, 0]);
    await single.release();

    const fewer = await openUnet(3, 1);
    await fewer.openNarrow();
    expect([fewer.narrow.length, fewer.narrowMax]).toEqual([1, 1]);
    await fewer.release();
  });

  it("counts its weights once for each session that it may open", async () => {
    const { size } = await stat(FILES.unetPath);
    const lanes = await openUnet(2);
    expect(lanes.weightsBytes).toBe(3 * size);
    await lanes.release();
  });

  it("measures beside its first run of two rows how much a row depends on its batch: not at all", async () => {
    const lanes = await openUnet(2);
    const rows = [randomRow(1), randomRow(2)];
    const alone = await eachAlone(lanes.wide, rows);
    expect(lanes.batchDifference).toBeUndefined();
    expect(await together(lanes.wide, rows)).toEqual(alone);
    expect(lanes.batchDifference).toBe(0);
    await lanes.openNarrow();
    expect(lanes.batchDifference).toBe(0);
    await lanes.release();
  });

  it("runs its lanes beside one another without mixing them up, and blocks nobody meanwhile", async () => {
    const lanes = await openUnet(2);
    await lanes.openNarrow();
    const rows = [randomRow(1), randomRow(2)];
    const expected = await eachAlone(lanes.wide, rows);
    let turns = 0;
    const turning = setInterval(() => turns++, 0);
    const predicted = await Promise.all(
      lanes.narrow.map(async (lane, i) => {
        const all: Float32Array[] = [];
        for (let step = 0; step < 20; step++) all.push(...(await eachAlone(lane, [rows[i]!])));
        return all;
      }),
    );
    clearInterval(turning);
    predicted.forEach((all, i) => {
      for (const prediction of all) expect(prediction).toEqual(expected[i]);
    });
    expect(turns).toBeGreaterThan(0);
    await lanes.release();
  });

  it("can be released while lanes are opening", async () => {
    const lanes = await openUnet(2);
    const opening = lanes.openNarrow();
    await lanes.release();
    await opening;
  });
});

function openUnet(threads: number, narrowLanesMax = threads) {
  return openDevice({ kind: "onnx", provider: "cpu", threads, narrowLanesMax }).openUnet(FILES);
}

async function eachAlone(lane: UnetLane, rows: readonly UnetRow[]): Promise<Float32Array[]> {
  const predictions: Float32Array[] = [];
  for (const row of rows) predictions.push(...(await together(lane, [row])));
  return predictions;
}

async function together(lane: UnetLane, rows: readonly UnetRow[]): Promise<Float32Array[]> {
  const batch = { model: FILES.model, shape: SHAPE, sequenceLength: 77, rows };
  return (await lane.predictNoise(batch)).map((prediction) => prediction.slice());
}

/** Rows of different steps: no two share a timestep. */
function randomRow(seed: number): UnetRow {
  const random = seededRandom(seed);
  const values = (length: number) => Float32Array.from({ length }, () => 4 * random.next() - 2);
  return { sample: values(4 * 16 * 24), timestep: 999 - 150.5 * seed, conditioning: values(77 * 128) };
}
