import { mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ServingError } from "@atelier/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readBundle } from "./index.ts";
import {
  json,
  network,
  type ToyFiles,
  toyFiles,
  toyManifest,
  toyXlFiles,
  unet,
  writeBundle,
  XL_UNET_CONFIG,
} from "./testing/toy-bundle.ts";

let dir: string;
beforeEach(async () => {
  dir = await realpath(await mkdtemp(join(tmpdir(), "bundle-")));
});
afterEach(() => rm(dir, { recursive: true }));

describe("a bundle of Stable Diffusion 1 or 2", () => {
  it.each(["sd1", "sd2"])("has one text encoder, read after its last layer, and no extras: %s", async (family) => {
    const files = toyFiles();
    await writeBundle(dir, files, toyManifest(files, family));
    const bundle = await readBundle(dir);
    expect(bundle.textEncoders).toEqual([
      {
        path: join(dir, "text_encoder/model.onnx"),
        tokenizerDir: join(dir, "tokenizer"),
        hiddenOutput: "last_hidden_state",
      },
    ]);
    expect(bundle).toMatchObject({ unetExtras: {}, zeroEmptyNegative: false, crossAttentionDim: 8 });
  });
});

describe("a bundle of SDXL", () => {
  it("has two text encoders, each read before its last layer, and gives the U-Net a pooled embedding and sizes", async () => {
    await writeXl({});
    expect(await readBundle(dir)).toMatchObject({
      crossAttentionDim: 20,
      unetExtras: { text_embeds: 10, time_ids: 6 },
      textEncoders: [
        {
          path: join(dir, "text_encoder/model.onnx"),
          tokenizerDir: join(dir, "tokenizer"),
          hiddenOutput: "hidden_states.2",
        },
        {
          path: join(dir, "text_encoder_2/model.onnx"),
          tokenizerDir: join(dir, "tokenizer_2"),
          hiddenOutput: "hidden_states.1",
          pooledOutput: "text_embeds",
        },
      ],
    });
  });

  it.each([
    [true, { force_zeros_for_empty_prompt: true }],
    [true, {}],
    [false, { force_zeros_for_empty_prompt: false }],
  ])("stands for an empty negative prompt by zeros: %s, where model_index.json says %j", async (expected, index) => {
    await writeXl({ "model_index.json": json({ _class_name: "StableDiffusionXLPipeline", ...index }) });
    expect((await readBundle(dir)).zeroEmptyNegative).toBe(expected);
  });

  it("may give every hidden state, as optimum's exports do", async () => {
    const states = [0, 1, 2, 3].map((i) => [`hidden_states.${i}`, [1, "b", "n", 8]] as const);
    await writeXl({
      "text_encoder/model.onnx": network({ inputs: { input_ids: [6] }, outputs: Object.fromEntries(states) }),
    });
    await expect(readBundle(dir)).resolves.toMatchObject({ textEncoders: [{ hiddenOutput: "hidden_states.2" }, {}] });
  });

  it("names its text apart from that of a bundle which has one of the encoders", async () => {
    await writeXl({});
    const { textDigest, digest } = await readBundle(dir);
    await writeXl({ "text_encoder_2/config.json": json({ ...XL_SECOND, num_hidden_layers: 2, more: 1 }) });
    const other = await readBundle(dir);
    expect(other.textDigest).not.toBe(textDigest);
    await writeXl({ "vae_decoder/config.json": json({ scaling_factor: 0.13025 }) });
    expect(await readBundle(dir)).toMatchObject({ textDigest, scalingFactor: 0.13025 });
    expect((await readBundle(dir)).digest).not.toBe(digest);
  });

  it.each<[string, Partial<ToyFiles>, string]>([
    [
      "a U-Net that asks for what nothing provides",
      {
        "unet/model.onnx": unet({
          hiddenSize: 20,
          extras: { text_embeds: [1, "b", 10], time_ids: [1, "b", 6], timestep_cond: [1, "b", 256], mask: [1] },
        }),
      },
      'unet/model.onnx: asks for an input "timestep_cond" that this family of models does not have\n' +
        '  - unet/model.onnx: asks for an input "mask"',
    ],
    [
      "a U-Net without the pooled embedding",
      { "unet/model.onnx": unet({ hiddenSize: 20, extras: { time_ids: [1, "b", 6] } }) },
      'unet/model.onnx: has no input "text_embeds"',
    ],
    [
      "a U-Net for another pooled embedding",
      { "unet/model.onnx": unet({ hiddenSize: 20, extras: { text_embeds: [1, "b", 9], time_ids: [1, "b", 6] } }) },
      'its input "text_embeds" has the shape [b, 9], and the rest of the bundle needs [any, 10]',
    ],
    [
      "a U-Net as wide as one of its encoders",
      { "unet/config.json": json({ ...XL_UNET_CONFIG, cross_attention_dim: 12 }) },
      "unet/config.json: cross_attention_dim is 12, 8 + 12 hidden_sizes make 20",
    ],
    [
      "a U-Net without added conditions",
      { "unet/config.json": json({ ...XL_UNET_CONFIG, addition_embed_type: null }) },
      'unet/config.json: addition_embed_type is null, and that of the family "sdxl" is "text_time"',
    ],
    [
      "the refiner's five sizes",
      { "unet/config.json": json({ ...XL_UNET_CONFIG, projection_class_embeddings_input_dim: 30 }) },
      "projection_class_embeddings_input_dim is 30, and the pooled embedding's 10 and 6 sizes of 4 make 34",
    ],
    [
      "an encoder that gives only its last layer",
      {
        "text_encoder/model.onnx": network({ inputs: { input_ids: [7] }, outputs: { last_hidden_state: [1] } }),
      },
      'text_encoder/model.onnx: has no output "hidden_states.2" (its outputs: last_hidden_state)',
    ],
    [
      "a second encoder without a projection",
      {
        "text_encoder_2/model.onnx": network({
          inputs: { input_ids: [7] },
          outputs: { "hidden_states.1": [1, "b", "n", 12] },
        }),
      },
      'text_encoder_2/model.onnx: has no output "text_embeds"',
    ],
    [
      "a second tokenizer with ids that its encoder lacks",
      {
        "text_encoder_2/config.json": json({
          hidden_size: 12,
          vocab_size: 5,
          num_hidden_layers: 2,
          projection_dim: 10,
        }),
      },
      "tokenizer_2: has ids up to 5, the text encoder a vocabulary of 5",
    ],
    [
      "a pipeline of one encoder",
      { "model_index.json": json({ _class_name: "StableDiffusionPipeline" }) },
      'model_index.json: _class_name is "StableDiffusionPipeline", a pipeline that is not of the family "sdxl"',
    ],
  ])("is refused with %s", async (_, change, expected) => {
    await writeXl(change);
    expect(await complaint()).toContain(expected);
  });

  it("is refused without its second text encoder, each file named", async () => {
    const files = Object.entries(toyXlFiles()).filter(([name]) => !/^(?:text_encoder|tokenizer)_2\//.test(name));
    await writeBundle(dir, Object.fromEntries(files), toyManifest(Object.fromEntries(files), "sdxl"));
    const message = await complaint();
    for (const file of ["text_encoder_2/config.json", "text_encoder_2/model.onnx"]) {
      expect(message).toContain(`${file}: is needed, and atelier.json does not list it among its parts`);
    }
    expect(message).toContain("tokenizer_2: atelier.json has to list tokenizer_2/tokenizer.json");
  });

  it("is refused as a bundle of another family", async () => {
    const files = toyXlFiles();
    await writeBundle(dir, files, toyManifest(files, "sd1"));
    const message = await complaint();
    expect(message).toContain('addition_embed_type is "text_time", and that of the family "sd1" is null');
    expect(message).toContain('unet/model.onnx: asks for an input "text_embeds"');
  });
});

describe("the two halves of a VAE", () => {
  it("are refused where they scale latents differently", async () => {
    const files: ToyFiles = { ...toyFiles(), "vae_encoder/config.json": json({ scaling_factor: 0.13025 }) };
    await writeBundle(dir, files);
    expect(await complaint()).toContain("vae_encoder/config.json: scaling_factor is 0.13025, the decoder's 0.5");
  });
});

const XL_SECOND = { hidden_size: 12, vocab_size: 6, projection_dim: 10 };

async function writeXl(change: Partial<ToyFiles>): Promise<void> {
  const files = { ...toyXlFiles(), ...change } as ToyFiles;
  await writeBundle(dir, files, toyManifest(files, "sdxl"));
}

async function complaint(): Promise<string> {
  return readBundle(dir).then(
    () => "nothing was refused",
    (error: ServingError) => (error.code === "INVALID_BUNDLE" ? error.detail : String(error)),
  );
}
