import { mkdir, mkdtemp, realpath, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ServingError } from "@atelier/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readBundle } from "./index.ts";
import { json, network, type ToyFiles, text, toyFiles, toyManifest, unet, writeBundle } from "./testing/toy-bundle.ts";

let dir: string;
beforeEach(async () => {
  dir = await realpath(await mkdtemp(join(tmpdir(), "bundle-")));
});
afterEach(() => rm(dir, { recursive: true }));

describe("readBundle", () => {
  it("reads a whole bundle: what it is called, where its networks lie, and the figures that join them", async () => {
    await writeBundle(dir, toyFiles());
    expect(await readBundle(dir)).toMatchObject({
      dir,
      id: "toy",
      manifest: { defaultSteps: 25, sizeMultiple: 8 },
      modelIndex: { _class_name: "StableDiffusionPipeline" },
      scheduler: { prediction_type: "v_prediction" },
      scalingFactor: 0.5,
      latentChannels: 4,
      crossAttentionDim: 8,
      textEncoders: [
        {
          path: join(dir, "text_encoder/model.onnx"),
          tokenizerDir: join(dir, "tokenizer"),
          hiddenOutput: "last_hidden_state",
        },
      ],
      unetPath: join(dir, "unet/model.onnx"),
      graphs: {
        unet: {
          inputs: [{ name: "sample", type: "float32" }, { name: "timestep" }, { name: "encoder_hidden_states" }],
        },
      },
    });
  });

  it("can be sent to another thread", async () => {
    await writeBundle(dir, toyFiles());
    const bundle = await readBundle(dir);
    expect(structuredClone(bundle)).toEqual(bundle);
  });

  it("has a VAE encoder only where the bundle brings one", async () => {
    await writeBundle(dir, toyFiles());
    expect(await readBundle(dir)).not.toHaveProperty("vaeEncoderPath");
    await writeBundle(dir, { ...toyFiles(), "vae_encoder/model.onnx": VAE_ENCODER });
    expect((await readBundle(dir)).vaeEncoderPath).toBe(join(dir, "vae_encoder/model.onnx"));
  });

  it("gives one digest for the same parts, whatever their order, and another when one byte differs", async () => {
    const files = toyFiles();
    await writeBundle(dir, files);
    const { digest } = await readBundle(dir);
    await writeBundle(dir, Object.fromEntries(Object.entries(files).reverse()));
    expect((await readBundle(dir)).digest).toBe(digest);
    await writeBundle(dir, { ...files, "vae_decoder/config.json": json({ scaling_factor: 0.25 }) });
    expect((await readBundle(dir)).digest).not.toBe(digest);
    expect(digest).toMatch(/^sha256:[0-9a-f]{64}$/);
  });

  it("takes an exporter's open shapes at the configuration's word", async () => {
    const open = network({
      inputs: { sample: [1], timestep: [7], encoder_hidden_states: [1, "a", "b", "c"] },
      outputs: { out_sample: [1] },
    });
    await writeBundle(dir, { ...toyFiles(), "unet/model.onnx": open });
    expect((await readBundle(dir)).crossAttentionDim).toBe(8);
  });

  it("reads Python's infinities in the scheduler's configuration", async () => {
    const config = text('{"_class_name": "DDIMScheduler", "lambda_min_clipped": -Infinity}');
    await writeBundle(dir, { ...toyFiles(), "scheduler/scheduler_config.json": config });
    expect((await readBundle(dir)).scheduler).toMatchObject({ lambda_min_clipped: -Infinity });
  });

  it("reads weights that lie in another part of the bundle", async () => {
    await writeBundle(dir, {
      ...toyFiles(),
      ...unetWithWeightsIn("model.onnx_data"),
      "unet/model.onnx_data": new Uint8Array(16),
    });
    await expect(readBundle(dir)).resolves.toMatchObject({ id: "toy" });
  });
});

describe("readBundle refuses with INVALID_BUNDLE", () => {
  it("a folder that is not there", async () => {
    expect(await complaint(join(dir, "nowhere"))).toContain(
      `the bundle in ${dir}/nowhere cannot be used: .: cannot be read: it is missing`,
    );
  });

  it("a folder without our own file", async () => {
    expect(await complaint(dir)).toContain("atelier.json: cannot be read: it is missing");
  });

  it("damaged JSON of ours", async () => {
    await writeFile(join(dir, "atelier.json"), '{"schemaVersion": 1,');
    expect(await complaint(dir)).toContain("atelier.json: is not JSON");
  });

  it.each<[string, Record<string, unknown>, string]>([
    ["a schema from the future", { schemaVersion: 2 }, "schemaVersion is 2; this version of Atelier reads 1"],
    ["a key that we never wrote", { defualtSteps: 3 }, 'Unrecognized key: "defualtSteps"'],
    ["a family that we do not run", { family: "flux" }, 'family is "flux"'],
    ["a sampler that we do not have", { defaultSampler: "magic" }, 'defaultSampler is "magic"'],
    [
      "a default size off the grid",
      { defaultSize: { width: 513, height: 512 } },
      "defaultSize.width is 513: is not a multiple of",
    ],
    [
      "a native size out of the limits",
      { nativeSize: { width: 64, height: 128 } },
      "nativeSize.width is 64: is not within 128 and 1024",
    ],
    ["a preview for other latents", { previewMatrix: [[1, 1, 1]], previewBias: [0, 0, 0] }, "previewMatrix has 1 rows"],
    ["half a preview", { previewBias: [0, 0, 0] }, "previewMatrix is absent: and previewBias come together"],
    [
      "a digest that is none",
      { parts: { "unet/model.onnx": { sha256: "x", bytes: 1 } } },
      "must be 64 lower-case hex digits",
    ],
  ])("%s", async (_, change, expected) => {
    const files = toyFiles();
    await writeBundle(dir, files, { ...toyManifest(files), ...change });
    expect(await complaint(dir)).toContain(`bundle "toy" (${dir}) cannot be used: atelier.json: `);
    expect(await complaint(dir)).toContain(expected);
  });

  it.each<[string, Partial<ToyFiles>, string]>([
    ["diffusers' JSON cut off", { "unet/config.json": text('{"in_chan') }, "unet/config.json: is not JSON"],
    ["JSON that is not an object", { "model_index.json": text("[]") }, "model_index.json: does not hold a JSON object"],
    [
      "text that is not UTF-8",
      { "model_index.json": Uint8Array.of(0xff, 0xfe) },
      "model_index.json: is not UTF-8 text",
    ],
    [
      "a pipeline of other networks",
      { "model_index.json": json({ _class_name: "FluxPipeline" }) },
      '_class_name is "FluxPipeline"',
    ],
    [
      "another kind of schedule",
      { "scheduler/scheduler_config.json": json({ _class_name: "FlowMatch" }) },
      "scheduler/scheduler_config.json: _class_name",
    ],
    [
      "a truncated ONNX file whose digest is right",
      { "unet/model.onnx": unet().subarray(0, 300) },
      "unet/model.onnx: is not a whole ONNX file",
    ],
    [
      "a pointer of git-lfs in place of weights",
      { "unet/model.onnx": text("version https://git-lfs.github.com/spec/v1\n") },
      "unet/model.onnx: is not a whole ONNX file",
    ],
    ["an empty ONNX file", { "unet/model.onnx": new Uint8Array() }, "unet/model.onnx: holds no graph"],
    [
      "a U-Net for other latents",
      { "unet/model.onnx": unet({ latentChannels: 9 }) },
      'unet/model.onnx: its input "sample" has the shape [batch, 9, height, width], and the rest of the bundle needs [any, 4, any, any]',
    ],
    [
      "a U-Net for another text encoder",
      { "unet/model.onnx": unet({ hiddenSize: 768 }) },
      'its input "encoder_hidden_states" has the shape [batch, sequence, 768]',
    ],
    [
      "configurations that contradict each other",
      { "unet/config.json": json({ in_channels: 4, cross_attention_dim: 16 }) },
      "cross_attention_dim is 16, the text encoder's hidden_size 8",
    ],
    [
      "a VAE for other latents",
      { "vae_decoder/config.json": json({ latent_channels: 16 }) },
      "in_channels is 4, the VAE's latent_channels 16",
    ],
    [
      "a VAE that whitens channel by channel",
      { "vae_decoder/config.json": json({ latents_mean: [0, 0, 0, 0] }) },
      "latents_mean is [0,0,0,0]",
    ],
    [
      "a network without its input",
      { "text_encoder/model.onnx": network({ inputs: { ids: [7] }, outputs: { last_hidden_state: [1] } }) },
      'has no input "input_ids" (its inputs: ids)',
    ],
    [
      "a network that asks for more than we have",
      {
        "text_encoder/model.onnx": network({
          inputs: { input_ids: [7], attention_mask: [7] },
          outputs: { last_hidden_state: [1] },
        }),
      },
      'asks for an input "attention_mask"',
    ],
    [
      "a network without its output",
      { "text_encoder/model.onnx": network({ inputs: { input_ids: [7] }, outputs: { text_embeds: [1] } }) },
      'has no output "last_hidden_state" (its outputs: text_embeds)',
    ],
    [
      "an input of another type",
      { "text_encoder/model.onnx": network({ inputs: { input_ids: [1] }, outputs: { last_hidden_state: [1] } }) },
      'its input "input_ids" is float32, not int64 or int32',
    ],
    [
      "a tokenizer for another text encoder",
      { "text_encoder/config.json": json({ hidden_size: 8, vocab_size: 5 }) },
      "tokenizer: has ids up to 5, the text encoder a vocabulary of 5",
    ],
    [
      "a tokenizer that is not CLIP's",
      { "tokenizer/tokenizer_config.json": json({ tokenizer_class: "T5Tokenizer" }) },
      "tokenizer: tokenizer_config.json: tokenizer_class",
    ],
    [
      "a pickle",
      { "unet/diffusion_pytorch_model.bin": text("PK") },
      "unet/diffusion_pytorch_model.bin: is a pickle by its name",
    ],
    ["a checkpoint, however it is spelt", { "v1-5.CKPT": text("PK") }, "v1-5.CKPT: is a pickle by its name"],
  ])("%s", async (_, change, expected) => {
    await writeBundle(dir, { ...toyFiles(), ...change } as ToyFiles);
    expect(await complaint(dir)).toContain(expected);
  });

  it.each(["unet/model.onnx", "model_index.json", "vae_decoder/config.json"])(
    "a bundle that does not list %s",
    async (file) => {
      const { [file]: _, ...rest } = toyFiles();
      await writeBundle(dir, rest);
      expect(await complaint(dir)).toContain(`${file}: is needed, and atelier.json does not list it among its parts`);
    },
  );

  it("a listed file that is missing", async () => {
    await writeBundle(dir, toyFiles());
    await rm(join(dir, "unet/model.onnx"));
    expect(await complaint(dir)).toContain("unet/model.onnx: cannot be opened: it is missing");
  });

  it("a file cut off on its way, before anything parses it", async () => {
    const files = toyFiles();
    await writeBundle(dir, files);
    await truncate(join(dir, "unet/model.onnx"), 100);
    const whole = files["unet/model.onnx"]!.length;
    expect(await complaint(dir)).toContain(
      `unet/model.onnx: is truncated: it has 100 bytes, atelier.json says ${whole}`,
    );
  });

  it("a file with one byte changed", async () => {
    const files = toyFiles();
    await writeBundle(dir, files);
    await writeFile(join(dir, "unet/model.onnx"), files["unet/model.onnx"]!.with(200, 7));
    expect(await complaint(dir)).toContain("unet/model.onnx: is damaged or replaced: its sha256 is ");
  });

  it("tokenizer files that no digest covers", async () => {
    await writeBundle(dir, toyFiles());
    await writeFile(join(dir, "tokenizer/special_tokens_map.json"), '{"pad_token": "a"}');
    expect(await complaint(dir)).toContain("tokenizer/special_tokens_map.json: is there, would change the tokens");
  });

  it("no tokenizer at all", async () => {
    const { "tokenizer/vocab.json": _, ...rest } = toyFiles();
    await writeBundle(dir, rest);
    expect(await complaint(dir)).toContain(
      "tokenizer: atelier.json has to list tokenizer/tokenizer.json, or tokenizer/vocab.json and tokenizer/merges.txt",
    );
  });

  it("everything that is wrong, in one message of one line each", async () => {
    const { "vae_decoder/model.onnx": _, ...rest } = toyFiles();
    await writeBundle(dir, { ...rest, "unet/model.onnx": unet({ latentChannels: 9 }), "x.pt": text("") });
    await writeFile(join(dir, "unet/config.json"), "{}");
    const lines = (await complaint(dir)).split("\n  - ");
    expect(lines[0]).toBe(`bundle "toy" (${dir}) cannot be used:`);
    expect(lines.slice(1).map((line) => line.split(":")[0])).toEqual([
      "unet/config.json",
      "x.pt",
      "vae_decoder/model.onnx",
      "unet/model.onnx",
      "unet/model.onnx",
    ]);
  });
});

describe("readBundle opens no file outside the bundle", () => {
  const PATHS: [string, string][] = [
    ["/etc/hostname", "is an absolute path"],
    ["C:/windows/win.ini", "is an absolute path"],
    ["../secret", 'has ".." in its path'],
    ["unet/../../secret", 'has ".." in its path'],
    ["unet\\..\\..\\secret", 'has ".." in its path'],
    ["./unet/model.onnx", "is not a plain path"],
    ["unet//model.onnx", "is not a plain path"],
    ["unet\\model.onnx", "is not a plain path"],
    ["", "is not the name of a file"],
    ["a\0b", "is not the name of a file"],
    ["unet", "is not a file"],
    ["atelier.json", "cannot hold its own digest"],
  ];

  it.each(PATHS)("by a part called %j", async (name, expected) => {
    const files = toyFiles();
    const manifest = toyManifest(files);
    const parts = { ...(manifest["parts"] as object), [name]: { sha256: "0".repeat(64), bytes: 3 } };
    await writeBundle(dir, files, { ...manifest, parts });
    expect(await complaint(dir)).toContain(expected);
  });

  it("by a symbolic link of a file", async () => {
    const inside = await bundleBeside("secret");
    await rm(join(inside, "unet/model.onnx"));
    await symlink(join(dir, "secret"), join(inside, "unet/model.onnx"));
    expect(await complaint(inside)).toContain("unet/model.onnx: leaves the bundle's folder through a symbolic link");
  });

  it("by a symbolic link of a folder", async () => {
    const inside = await bundleBeside("secret");
    await rm(join(inside, "unet"), { recursive: true });
    await symlink(dir, join(inside, "unet"));
    await writeFile(join(dir, "model.onnx"), unet());
    expect(await complaint(inside)).toContain("unet/model.onnx: leaves the bundle's folder through a symbolic link");
  });

  it("by a folder whose name begins like the bundle's", async () => {
    const inside = await bundleBeside("bundle-secret");
    await rm(join(inside, "unet/model.onnx"));
    await symlink(join(dir, "bundle-secret"), join(inside, "unet/model.onnx"));
    expect(await complaint(inside)).toContain("leaves the bundle's folder through a symbolic link");
  });

  it("but follows a link to the bundle itself, and links inside it", async () => {
    const inside = await bundleBeside("other");
    await symlink(inside, join(dir, "link"));
    expect((await readBundle(join(dir, "link"))).dir).toBe(inside);
    await rm(join(inside, "unet/model.onnx"));
    await writeFile(join(inside, "weights"), unet());
    await symlink(join(inside, "weights"), join(inside, "unet/model.onnx"));
    await expect(readBundle(inside)).resolves.toMatchObject({ id: "toy" });
  });

  it.each([...PATHS.slice(0, 5), ["sub/../../x", 'has ".." in its path'] as const])(
    "by an ONNX graph that keeps weights in %j",
    async (location, expected) => {
      await writeBundle(dir, { ...toyFiles(), ...unetWithWeightsIn(location) });
      expect(await complaint(dir)).toContain("unet/model.onnx: keeps weights in");
      expect(await complaint(dir)).toContain(expected);
    },
  );

  it("by an ONNX graph whose weights are a symbolic link", async () => {
    await mkdir(join(dir, "bundle"));
    await writeBundle(join(dir, "bundle"), { ...toyFiles(), ...unetWithWeightsIn("weights") });
    await writeFile(join(dir, "secret"), new Uint8Array(16));
    await symlink(join(dir, "secret"), join(dir, "bundle/unet/weights"));
    expect(await complaint(join(dir, "bundle"))).toContain('keeps weights in "weights", which leaves the bundle');
  });

  it("nor takes an ONNX graph's weights from a file without a digest, or from one too short", async () => {
    const files = { ...toyFiles(), ...unetWithWeightsIn("weights") };
    await writeBundle(dir, files);
    await writeFile(join(dir, "unet/weights"), new Uint8Array(16));
    expect(await complaint(dir)).toContain('keeps weights in "weights", which is not among the parts');
    await writeBundle(dir, { ...files, "unet/weights": new Uint8Array(15) });
    expect(await complaint(dir)).toContain("which is truncated: it has 15 bytes, the graph points to 16");
  });

  async function bundleBeside(file: string): Promise<string> {
    await writeFile(join(dir, file), unet());
    const inside = join(dir, "bundle");
    await mkdir(inside);
    await writeBundle(inside, toyFiles());
    return inside;
  }
});

const VAE_ENCODER = network({
  inputs: { sample: [1, "batch", 3, "height", "width"] },
  outputs: { latent_parameters: [1, "batch", 8, "height", "width"] },
});

function unetWithWeightsIn(location: string): ToyFiles {
  const inputs = { sample: [1], timestep: [1], encoder_hidden_states: [1] } as const;
  return { "unet/model.onnx": network({ inputs, outputs: { out_sample: [1] }, externalData: [location] }) };
}

/** The message of the refusal, without its code. */
async function complaint(bundle: string): Promise<string> {
  const error = await readBundle(bundle).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof ServingError)) throw error ?? new Error("nothing was refused");
  expect(error.code).toBe("INVALID_BUNDLE");
  return error.detail;
}
