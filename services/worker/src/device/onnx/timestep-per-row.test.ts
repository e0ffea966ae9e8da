import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { proto } from "@atelier/onnx";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { UnetBatch, UnetRow } from "../../stages/denoise.ts";
import { openDevice } from "../device.ts";

/** A U-Net as optimum exports it: one int64 timestep without dimensions. The truth is the file itself, row by row. */
const SCALAR_TIMESTEP = fileURLToPath(
  new URL("../../../../../test/golden/families/sd15-scalar-timestep/unet.onnx", import.meta.url),
);

describe("a U-Net exported with one timestep for its batch", () => {
  it("runs rows of different timesteps at once, in every lane, to the bits of separate runs", async () => {
    const unet = await open(SCALAR_TIMESTEP);
    const rows = [row(981), row(3), row(500)];
    const alone = await runAlone(rows);
    await unet.openNarrow();
    for (const lane of [unet.wide, ...unet.narrow]) {
      const predictions = await lane.predictNoise(batch(rows));
      expect(new Set(predictions.map(({ buffer }) => buffer)).size, "one run's output holds every row").toBe(1);
      expect(predictions.map((values) => [...values])).toEqual(alone);
    }
    expect(unet.narrow).toHaveLength(2);
    await unet.release();
  });

  it("sees fractions of a timestep", async () => {
    const unet = await open(SCALAR_TIMESTEP);
    const [whole, half] = (await unet.wide.predictNoise(batch([row(20), { ...row(20), timestep: 20.5 }]))).map(String);
    expect(whole).not.toBe(half);
    await unet.release();
  });

  it("finds weights that lie in a file beside the graph", async () => {
    const unet = await open(await withWeightsBeside(await readFile(SCALAR_TIMESTEP)));
    const rows = [row(981), row(3)];
    const predictions = await unet.wide.predictNoise(batch(rows));
    expect(predictions.map((values) => [...values])).toEqual(await runAlone(rows));
    await unet.release();
  });

  it("is run as it is, with a note for the log that says why, where the graph is not understood", async () => {
    const path = join(folder, "strange.onnx");
    const model = fromBinary(proto.ModelProtoSchema, await readFile(SCALAR_TIMESTEP));
    // An Abs in front of it: the same numbers, by a node that the rewrite does not know.
    for (const { input } of model.graph!.node) if (input[0] === "timestep") input[0] = "absolute";
    const abs = { $typeName: "onnx.NodeProto" as const, input: ["timestep"], output: ["absolute"], opType: "Abs" };
    model.graph!.node.unshift({ ...abs, name: "abs", domain: "", attribute: [] });
    await writeFile(path, toBinary(proto.ModelProtoSchema, model));

    const unet = await open(path);
    expect(unet.note).toMatch(
      /^m: unet\/model\.onnx runs once for each timestep in a batch: .* node Abs "abs", which is not/,
    );
    const rows = [row(981), row(3)];
    const predictions = await unet.wide.predictNoise(batch(rows));
    expect(predictions.map((values) => [...values])).toEqual(await runAlone(rows));
    await unet.release();
  });
});

const SHAPE = { channels: 4, height: 4, width: 6 };
const SEQUENCE = 5;
const TEXT_WIDTH = 32;
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "atelier-timestep-"));
});
afterAll(() => rm(folder, { recursive: true }));

function open(unetPath: string) {
  const files = { model: "m", family: "sd", latentChannels: 4, textEncoders: [], vaeDecoderPath: "", unetPath };
  return openDevice({ kind: "onnx", provider: "cpu", threads: 2 }).openUnet(files);
}

function batch(rows: readonly UnetRow[]): UnetBatch {
  return { model: "m", shape: SHAPE, sequenceLength: SEQUENCE, rows };
}

function row(timestep: number): UnetRow {
  const waves = (length: number) => Float32Array.from({ length }, (_, i) => Math.sin(i * 0.7 + timestep));
  return { sample: waves(4 * 4 * 6), timestep, conditioning: waves(SEQUENCE * TEXT_WIDTH) };
}

async function runAlone(rows: readonly UnetRow[]): Promise<number[][]> {
  const session = await InferenceSession.create(SCALAR_TIMESTEP, { intraOpNumThreads: 1, logSeverityLevel: 3 });
  const outputs: number[][] = [];
  for (const { sample, timestep, conditioning } of rows) {
    const { out_sample } = await session.run({
      sample: new Tensor("float32", sample, [1, SHAPE.channels, SHAPE.height, SHAPE.width]),
      timestep: new Tensor("int64", BigInt64Array.of(BigInt(timestep)), []),
      encoder_hidden_states: new Tensor("float32", conditioning, [1, SEQUENCE, TEXT_WIDTH]),
    });
    outputs.push([...(out_sample!.data as Float32Array)]);
  }
  await session.release();
  return outputs;
}

/** The same model with every stored tensor in external data. */
async function withWeightsBeside(bytes: Uint8Array): Promise<string> {
  const model = fromBinary(proto.ModelProtoSchema, bytes);
  const weights: Uint8Array[] = [];
  let offset = 0;
  for (const tensor of model.graph!.initializer) {
    const { length } = tensor.rawData;
    if (length < 1000) continue; // onnxruntime wants the small ones that steer shapes inside the graph
    weights.push(tensor.rawData);
    const entries = Object.entries({ location: "weights.bin", offset: `${offset}`, length: `${length}` });
    tensor.rawData = new Uint8Array();
    tensor.dataLocation = proto.TensorProto_DataLocation.EXTERNAL;
    tensor.externalData = entries.map(([key, value]) => ({ $typeName: "onnx.StringStringEntryProto", key, value }));
    offset += length;
  }
  expect(weights.length).toBeGreaterThan(10);
  await writeFile(join(folder, "weights.bin"), Buffer.concat(weights));
  const path = join(folder, "model.onnx");
  await writeFile(path, toBinary(proto.ModelProtoSchema, model));
  return path;
}
