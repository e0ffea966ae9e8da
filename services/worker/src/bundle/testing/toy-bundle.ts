import { createHash } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { proto } from "@atelier/onnx";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";

/** A bundle's files by name. */
export type ToyFiles = Record<string, Uint8Array>;

/**
 * A whole bundle whose networks have inputs and outputs and nothing between them: enough to be read, and to be broken in
 * one place by a test.
 */
export function toyFiles(): ToyFiles {
  return {
    "model_index.json": json({ _class_name: "StableDiffusionPipeline", _diffusers_version: "0.42.1" }),
    "scheduler/scheduler_config.json": json({ _class_name: "DDIMScheduler", prediction_type: "v_prediction" }),
    "text_encoder/config.json": json({ hidden_size: 8, vocab_size: 6, max_position_embeddings: 77 }),
    "text_encoder/model.onnx": network({
      inputs: { input_ids: [7, "batch", "sequence"] },
      outputs: { last_hidden_state: [1, "batch", "sequence", 8], pooler_output: [1, "batch", 8] },
    }),
    "tokenizer/vocab.json": json({ a: 0, b: 1, "a</w>": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5 }),
    "tokenizer/merges.txt": text("#version: 0.2\n"),
    "unet/config.json": json({ in_channels: 4, out_channels: 4, cross_attention_dim: 8, new_in_diffusers: [1] }),
    "unet/model.onnx": unet(),
    "vae_decoder/config.json": json({ latent_channels: 4, scaling_factor: 0.5, shift_factor: null }),
    "vae_decoder/model.onnx": network({
      inputs: { latent_sample: [1, "batch", 4, "height", "width"] },
      outputs: { sample: [1, "batch", 3, "height", "width"] },
    }),
  };
}

/** The same of the family of two text encoders, 8 and 12 wide, whose pooled embedding is 10 long. */
export function toyXlFiles(): ToyFiles {
  const files = toyFiles();
  return {
    ...files,
    "model_index.json": json({ _class_name: "StableDiffusionXLPipeline", force_zeros_for_empty_prompt: true }),
    "text_encoder/config.json": json({ hidden_size: 8, vocab_size: 6, num_hidden_layers: 3 }),
    "text_encoder/model.onnx": network({
      inputs: { input_ids: [7, "batch", "sequence"] },
      outputs: { "hidden_states.2": [1, "batch", "sequence", 8] },
    }),
    "text_encoder_2/config.json": json({ hidden_size: 12, vocab_size: 6, num_hidden_layers: 2, projection_dim: 10 }),
    "text_encoder_2/model.onnx": network({
      inputs: { input_ids: [7, "batch", "sequence"] },
      outputs: { text_embeds: [1, "batch", 10], "hidden_states.1": [1, "batch", "sequence", 12] },
    }),
    "tokenizer_2/vocab.json": files["tokenizer/vocab.json"]!,
    "tokenizer_2/merges.txt": files["tokenizer/merges.txt"]!,
    "unet/config.json": json(XL_UNET_CONFIG),
    "unet/model.onnx": unet({ hiddenSize: 20, extras: { text_embeds: [1, "batch", 10], time_ids: [1, "batch", 6] } }),
  };
}

export const XL_UNET_CONFIG = {
  in_channels: 4,
  cross_attention_dim: 20,
  addition_embed_type: "text_time",
  addition_time_embed_dim: 4,
  projection_class_embeddings_input_dim: 34, // 10 + 6 * 4
};

interface ToyUnet {
  readonly latentChannels?: number;
  readonly hiddenSize?: number;
  readonly extras?: Record<string, Shape>;
}

export function unet({ latentChannels = 4, hiddenSize = 8, extras = {} }: ToyUnet = {}): Uint8Array {
  return network({
    inputs: {
      sample: [1, "batch", latentChannels, "height", "width"],
      timestep: [1, "batch"],
      encoder_hidden_states: [1, "batch", "sequence", hiddenSize],
      ...extras,
    },
    outputs: { out_sample: [1, "batch", latentChannels, "height", "width"] },
  });
}

/** The manifest that belongs to `files`. */
export function toyManifest(files: ToyFiles, family = "sd"): Record<string, unknown> {
  const parts = Object.entries(files).map(([name, bytes]) => [name, { sha256: hex(bytes), bytes: bytes.length }]);
  return {
    schemaVersion: 1,
    id: "toy",
    name: "Toy",
    family,
    license: "Apache-2.0",
    nativeSize: { width: 256, height: 256 },
    defaultSize: { width: 512, height: 512 },
    sizeMultiple: 8,
    sizeMin: 128,
    sizeMax: 1024,
    defaultSteps: 25,
    defaultGuidanceScale: 2.5,
    defaultSampler: "dpmpp_2m",
    parts: Object.fromEntries(parts),
  };
}

/** Writes `files` and, as `atelier.json`, `manifest` under `dir`. */
export async function writeBundle(dir: string, files: ToyFiles, manifest: unknown = toyManifest(files)): Promise<void> {
  for (const [name, bytes] of Object.entries({ ...files, "atelier.json": json(manifest) })) {
    await mkdir(join(dir, dirname(name)), { recursive: true });
    await writeFile(join(dir, name), bytes);
  }
}

/** Element type, then sizes. 1 is float32, 7 is int64. */
type Shape = readonly [elementType: number, ...dims: (number | string)[]];

export interface ToyNetwork {
  readonly inputs: Record<string, Shape>;
  readonly outputs: Record<string, Shape>;
  /** Files that hold its weights, as the graph names them; 16 bytes from the beginning of each. */
  readonly externalData?: readonly string[];
}

export function network({ inputs, outputs, externalData = [] }: ToyNetwork): Uint8Array {
  const model = create(proto.ModelProtoSchema, {
    opsetImport: [{ domain: "", version: 17n }],
    graph: {
      name: "toy",
      input: Object.entries(inputs).map(valueInfo),
      output: Object.entries(outputs).map(valueInfo),
      initializer: [{ name: "weight", rawData: new Uint8Array(256) }, ...externalData.map(externalTensor)],
    },
  });
  return toBinary(proto.ModelProtoSchema, model);
}

function valueInfo([name, [elemType, ...sizes]]: [string, Shape]): MessageInitShape<typeof proto.ValueInfoProtoSchema> {
  const dim = sizes.map((size) =>
    typeof size === "number"
      ? { value: { case: "dimValue" as const, value: BigInt(size) } }
      : { value: { case: "dimParam" as const, value: size } },
  );
  return { name, type: { value: { case: "tensorType", value: { elemType, shape: { dim } } } } };
}

function externalTensor(location: string): MessageInitShape<typeof proto.TensorProtoSchema> {
  const entries = { location, offset: "0", length: "16" };
  return {
    name: location,
    dataLocation: proto.TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) => ({ key, value })),
  };
}

export function json(value: unknown): Uint8Array {
  return text(JSON.stringify(value));
}

export function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

function hex(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
