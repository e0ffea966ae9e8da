import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { UnetRow } from "../../stages/denoise.ts";
import { FLOAT16, FLOAT32, type NodeSpec, onnxModel, type TensorSpec } from "../../testing/onnx-model.ts";
import { type NetworkFiles, openDevice } from "../device.ts";
import { probeProvider } from "./providers.ts";

const device = openDevice({ kind: "onnx", provider: "cpu", threads: 1 });

describe("the U-Net on onnxruntime", () => {
  it("predicts each row from its own sample, timestep and text", async () => {
    const unet = await open({ timestep: { type: "float32", shape: ["b"] } });
    const predictions = await unet.wide.predictNoise(batch([row(1, 10.5, 3), row(2, 999, 5)]));
    expect(predictions.map((values) => [...values])).toEqual([filled(1 * 10.5 + 3), filled(2 * 999 + 5)]);
    await unet.release();
  });

  it.each([
    ["one for each row, whole", { type: "int64", shape: ["b"] }],
    ["one for the run, whole", { type: "int64", shape: [1] }],
    ["one for the run, without dimensions", { type: "int64", shape: [] }],
    ["one for the run, without dimensions, float", { type: "float32", shape: [] }],
    ["one for the run, 32-bit", { type: "int32", shape: [1] }],
  ] as const)("follows exports whose timestep is %s, in a batch of several timesteps", async (_, timestep) => {
    const unet = await open({ timestep });
    const predictions = await unet.wide.predictNoise(batch([row(1, 10, 3), row(2, 20, 5), row(3, 10, 7)]));
    expect(predictions.map((values) => values[0])).toEqual([13, 45, 37]);
    // What this small graph does with its timestep is not what a U-Net does: it cannot be rewritten, and says so.
    expect(unet.note).toMatch(/^m: unet\/model\.onnx runs once for each timestep in a batch: /);
    await unet.release();
  });

  it("gives graphs of whole timesteps the nearest, not the next below", async () => {
    const unet = await open({ timestep: { type: "int64", shape: ["b"] } });
    const [prediction] = await unet.wide.predictNoise(batch([row(1, 979.97, 0)]));
    expect(prediction![0]).toBe(980);
    await unet.release();
  });

  it("follows exports in float16", async () => {
    const unet = await open({ timestep: { type: "float16", shape: ["b"] }, floats: "float16" });
    const predictions = await unet.wide.predictNoise(batch([row(0.5, 10, 3), row(2, 20, 5)]));
    expect(predictions.map((values) => [...values])).toEqual([filled(8), filled(45)]);
    await unet.release();
  });

  it("says by how much a prediction changes with the batch", async () => {
    const path = await write("unet", {
      inputs: unetInputs("float32", { type: "float32", shape: ["b"] }),
      outputs: [tensor("out_sample", "float32", ["b", SHAPE.channels, "h", "w"])],
      nodes: [
        { op: "ReduceMean", inputs: ["sample"], output: "mean", attributes: { axes: [0], keepdims: 1 } }, // over the batch
        { op: "Sub", inputs: ["sample", "mean"], output: "out_sample" },
      ],
    });
    const unet = await device.openUnet(files({ unetPath: path }));
    const [first, second] = await unet.wide.predictNoise(batch([row(3, 1, 1), row(1, 1, 1)]));
    expect([first![0], second![0]]).toEqual([1, -1]);
    expect(unet.batchDifference).toBe(1); // alone it is 3 - 3
    await unet.release();
  });

  it("feeds what a row brings besides, by name", async () => {
    const path = await write("unet", {
      inputs: [...unetInputs("float32", { type: "float32", shape: ["b"] }), tensor("time_ids", "float32", ["b", 2])],
      outputs: [tensor("out_sample", "float32", ["b", 2])],
      nodes: [{ op: "Identity", inputs: ["time_ids"], output: "out_sample" }],
    });
    const unet = await device.openUnet(files({ unetPath: path }));
    const shape = { channels: 2, height: 1, width: 1 }; // as many values as there are time ids
    const sized = (...ids: number[]) => ({
      ...row(0, 0, 0),
      sample: new Float32Array(2),
      extras: { time_ids: Float32Array.from(ids) },
    });
    const predictions = await unet.wide.predictNoise({ ...batch([sized(512, 768), sized(1024, 8)]), shape });
    expect(predictions.map((values) => [...values])).toEqual([
      [512, 768],
      [1024, 8],
    ]);
    await expect(unet.wide.predictNoise(batch([row(1, 1, 1)]))).rejects.toThrow(/asks for: time_ids/);
    await unet.release();
  });

  it("refuses at once a graph that asks for what nobody here has, naming it", async () => {
    const path = await write("unet", {
      inputs: [...unetInputs("float32", { type: "float32", shape: ["b"] }), tensor("depth", "float32", ["b", 1])],
      outputs: [tensor("out_sample", "float32", ["b", 1])],
      nodes: [{ op: "Identity", inputs: ["depth"], output: "out_sample" }],
    });
    await expect(device.openUnet(files({ unetPath: path }))).rejects.toMatchObject({
      code: "INVALID_BUNDLE",
      detail: "unet/model.onnx: asks for inputs that are not known: depth",
    });
  });

  it("says that a run failed and why, and goes on", async () => {
    const unet = await open({ timestep: { type: "float32", shape: ["b"] } });
    const bad = { ...row(1, 1, 1), conditioning: new Float32Array(SEQUENCE * 3) }; // the graph wants four of each
    await expect(unet.wide.predictNoise(batch([bad]))).rejects.toMatchObject({
      code: "INTERNAL",
      detail: expect.stringMatching(/onnxruntime: .*encoder_hidden_states/s),
    });
    const [good] = await unet.wide.predictNoise(batch([row(1, 10, 3)]));
    expect(good![0]).toBe(13);
    await unet.release();
  });

  it("notices when another job has taken a row", async () => {
    const unet = await open({ timestep: { type: "float32", shape: ["b"] } });
    await unet.wide.predictNoise(batch([row(1, 1, 3), row(1, 1, 5)]));
    const stays = row(1, 1, 5);
    const first = await unet.wide.predictNoise(batch([stays, row(1, 1, 9)]));
    expect(first.map((values) => values[0])).toEqual([6, 10]);
    const second = await unet.wide.predictNoise(batch([row(1, 1, 2), stays]));
    expect(second.map((values) => values[0])).toEqual([3, 6]);
    await unet.release();
  });
});

describe("the VAE and the text encoder on onnxruntime", () => {
  it("decodes to a picture of the size that the graph makes", async () => {
    const path = await write("vae", {
      inputs: [tensor("latent_sample", "float32", ["b", 3, "h", "w"])],
      outputs: [tensor("sample", "float32", ["b", 3, "h", "w"])],
      nodes: [{ op: "Neg", inputs: ["latent_sample"], output: "sample" }],
    });
    const decoder = await device.openVaeDecoder(files({ vaeDecoderPath: path }));
    const shape = { channels: 3, height: 1, width: 2 };
    const first = Float32Array.of(1, 2, 3, 4, 5, 6);
    const second = first.map((x) => 10 * x);
    const decoded = await decoder.decode({ model: "m", latents: [first, second], shape, wide: true });
    expect(decoded.map(({ width, height, pixels }) => [width, height, ...pixels])).toEqual([
      [2, 1, -1, -2, -3, -4, -5, -6],
      [2, 1, -10, -20, -30, -40, -50, -60],
    ]);
    const [narrow] = await decoder.decode({ model: "m", latents: [second], shape, wide: false });
    expect(narrow!.pixels[5]).toBe(-60);
    await decoder.release();
  });

  it("encodes a picture to as many channels as the graph gives", async () => {
    const path = await write("vae_encoder", {
      inputs: [tensor("sample", "float16", ["b", 3, "h", "w"])],
      outputs: [tensor("latent_parameters", "float16", ["b", 6, "h", "w"])],
      nodes: [{ op: "Concat", inputs: ["sample", "sample"], output: "latent_parameters", attributes: { axis: 1 } }],
    });
    const encoder = await device.openVaeEncoder(files({ vaeEncoderPath: path }));
    for (const pixels of [Float32Array.of(1, 2, 3, 4, 5, 6), Float32Array.of(6, 5, 4, 3, 2, 1)]) {
      const encoded = await encoder.encode({ model: "tiny", pixels, width: 2, height: 1 });
      expect(encoded).toMatchObject({ channels: 6, height: 1, width: 2 });
      expect([...encoded.values]).toEqual([...pixels, ...pixels]);
    }
    await encoder.release();
  });

  it.each(["int64", "int32"] as const)("feeds ids as %s and gives each chunk's embedding", async (type) => {
    const path = await write(`text-${type}`, {
      inputs: [tensor("input_ids", type, ["b", "n"])],
      outputs: [tensor("last_hidden_state", "float32", ["b", "n", 1])],
      nodes: [
        { op: "Cast", inputs: ["input_ids"], output: "f", attributes: { to: FLOAT32 } },
        { op: "Unsqueeze", inputs: ["f"], output: "last_hidden_state", attributes: { axes: [2] } },
      ],
    });
    const encoder = await device.openTextEncoder({ path, hiddenOutput: "last_hidden_state" });
    const embedded = await encoder.encode([Int32Array.of(1, 2, 3), Int32Array.of(4, 5, 6)]);
    expect(embedded.map(({ hidden }) => [...hidden])).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    await encoder.release();
  });

  it("reads the hidden state and the pooled embedding that it was told to, and fetches no other layer", async () => {
    const states = ["hidden_states.0", "hidden_states.1"];
    const path = await write("text_encoder_2", {
      inputs: [tensor("input_ids", "int64", ["b", "n"])],
      outputs: [
        ...states.map((name) => tensor(name, "float32", ["b", "n", 1])),
        tensor("text_embeds", "float32", ["b", "n"]),
      ],
      nodes: [
        { op: "Cast", inputs: ["input_ids"], output: "f", attributes: { to: FLOAT32 } },
        { op: "Unsqueeze", inputs: ["f"], output: states[0]!, attributes: { axes: [2] } },
        { op: "Neg", inputs: [states[0]!], output: states[1]! },
        { op: "Neg", inputs: ["f"], output: "text_embeds" },
      ],
    });
    const encoder = await device.openTextEncoder({ path, hiddenOutput: states[0]!, pooledOutput: "text_embeds" });
    const embedded = await encoder.encode([Int32Array.of(1, 2), Int32Array.of(3, 4)]);
    expect(embedded.map(({ hidden, pooled }) => [[...hidden], [...pooled!]])).toEqual([
      [
        [1, 2],
        [-1, -2],
      ],
      [
        [3, 4],
        [-3, -4],
      ],
    ]);
    await encoder.release();
    await expect(device.openTextEncoder({ path, hiddenOutput: "hidden_states.7" })).rejects.toThrow(
      /INVALID_BUNDLE.*text_encoder_2\/model\.onnx: has no tensor "hidden_states\.7"/,
    );
  });

  it("names the file that is no graph, and the tensor that a graph lacks", async () => {
    const path = await write("unet", { inputs: [], outputs: [], nodes: [] });
    await writeFile(path, "not a graph");
    await expect(device.openUnet(files({ unetPath: path }))).rejects.toThrow(/INVALID_BUNDLE.*unet\/model\.onnx: /);
    const vae = await write("vae", {
      inputs: [tensor("x", "float32", [1])],
      outputs: [tensor("y", "float32", [1])],
      nodes: [{ op: "Neg", inputs: ["x"], output: "y" }],
    });
    await expect(device.openVaeDecoder(files({ vaeDecoderPath: vae }))).rejects.toThrow(/no tensor "latent_sample"/);
  });
});

describe("probeProvider", () => {
  it("finds the CPU", async () => {
    await probeProvider("cpu");
  });

  it("names a provider that is not here, and what it takes", async () => {
    await expect(probeProvider("tensorrt")).rejects.toMatchObject({
      code: "DEVICE_UNAVAILABLE",
      detail: expect.stringMatching(/"tensorrt" is not available here: .*TensorRT 10/),
    });
  });
});

const SHAPE = { channels: 2, height: 1, width: 3 };
const SEQUENCE = 2;
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "atelier-onnx-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** A U-Net that predicts sample * timestep + mean(text). */
async function open(options: { timestep: Omit<TensorSpec, "name">; floats?: "float32" | "float16" }) {
  const { timestep, floats = "float32" } = options;
  const perRow = timestep.shape[0] === "b";
  const broadcast = { axes: [1, 2, 3] };
  const nodes: NodeSpec[] = [
    { op: "Cast", inputs: ["timestep"], output: "t", attributes: { to: floats === "float16" ? FLOAT16 : FLOAT32 } },
    perRow
      ? { op: "Unsqueeze", inputs: ["t"], output: "scale", attributes: broadcast }
      : { op: "Identity", inputs: ["t"], output: "scale" },
    { op: "ReduceMean", inputs: ["encoder_hidden_states"], output: "m", attributes: { axes: [1, 2], keepdims: 0 } },
    { op: "Unsqueeze", inputs: ["m"], output: "shift", attributes: broadcast },
    { op: "Mul", inputs: ["sample", "scale"], output: "scaled" },
    { op: "Add", inputs: ["scaled", "shift"], output: "out_sample" },
  ];
  const path = await write("unet", {
    inputs: unetInputs(floats, timestep),
    outputs: [tensor("out_sample", floats, ["b", SHAPE.channels, "h", "w"])],
    nodes,
  });
  return device.openUnet(files({ unetPath: path }));
}

function unetInputs(floats: "float32" | "float16", timestep: Omit<TensorSpec, "name">): TensorSpec[] {
  return [
    tensor("sample", floats, ["b", SHAPE.channels, "h", "w"]),
    { name: "timestep", ...timestep },
    tensor("encoder_hidden_states", floats, ["b", "n", 4]),
  ];
}

function batch(rows: readonly UnetRow[]) {
  return { model: "m", family: "sd", latentChannels: 4, shape: SHAPE, sequenceLength: SEQUENCE, rows };
}

function row(sample: number, timestep: number, text: number): UnetRow {
  return {
    sample: Float32Array.from(filled(sample)),
    timestep,
    conditioning: new Float32Array(SEQUENCE * 4).fill(text),
  };
}

function filled(value: number): number[] {
  return new Array<number>(SHAPE.channels * SHAPE.height * SHAPE.width).fill(value);
}

function tensor(name: string, type: TensorSpec["type"], shape: TensorSpec["shape"]): TensorSpec {
  return { name, type, shape };
}

async function write(name: string, model: Parameters<typeof onnxModel>[0]): Promise<string> {
  await mkdir(join(folder, name), { recursive: true });
  const path = join(folder, name, "model.onnx");
  await writeFile(path, onnxModel(model));
  return path;
}

function files(paths: Partial<Pick<NetworkFiles, "unetPath" | "vaeDecoderPath" | "vaeEncoderPath">>): NetworkFiles {
  const nothing = { family: "sd", latentChannels: 4, textEncoders: [], unetPath: "", vaeDecoderPath: "" };
  return { model: "m", ...nothing, ...paths };
}
