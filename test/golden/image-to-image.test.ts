import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { sha256 } from "@atelier/core";
import type { LatentShape, SamplerName } from "@atelier/diffusion";
import { createPipeline, decodeInTiles, openDevice, type Pipeline, readBundle, toRgb } from "@atelier/worker";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readGolden, type Span } from "./golden-file.ts";
import { goldenPicture, picture, psnrDb } from "./pictures.ts";

interface FromPicture {
  readonly file: string;
  /** Among the pictures of `pipeline`. */
  readonly init: string;
  readonly prompt: string;
  readonly seed: number;
  readonly sampler: SamplerName;
  readonly strength: number;
  readonly width: number;
  readonly height: number;
}

interface Head {
  readonly bundle: { readonly id: string; readonly parts: Readonly<Record<string, string>> }; // SHA-256 by file
  readonly negativePrompt: string;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly imageToImage: readonly FromPicture[];
}

interface TiledCase {
  readonly latent: Span;
  readonly shape: LatentShape;
  readonly tile: number;
}

/** Where pictures are equal but for rounding to 8 bits. Measured: 70 dB and more. */
const PSNR_MIN_DB = 55;
const TIME_MAX_MS = 600_000;

const golden = readGolden<TiledCase, Head>("image-to-image");
const bundleDir = fileURLToPath(new URL("../../deploy/models/atelier-tiny/", import.meta.url));

describe("the worker's pipeline, from a picture", () => {
  let pipeline: Pipeline;
  let pictures: ReadonlyMap<FromPicture, Uint8Array>;

  beforeAll(async () => {
    pipeline = await createPipeline({
      bundleDirs: [bundleDir],
      device: { kind: "onnx", provider: "cpu", threads: 2 },
      limits: { queueMax: golden.imageToImage.length, stepBatchMax: 4 },
      onFatal: (error) => {
        throw error;
      },
    });
    pictures = new Map(
      await Promise.all(golden.imageToImage.map(async (one) => [one, await generate(pipeline, one)] as const)),
    );
  }, TIME_MAX_MS);
  afterAll(() => pipeline?.close());

  it.each(Object.entries(golden.bundle.parts))("is tested with the %s that the pictures belong to", (file, digest) => {
    expect(
      createHash("sha256")
        .update(readFileSync(bundleDir + file))
        .digest("hex"),
    ).toBe(digest);
  });

  it.each(golden.imageToImage)(
    "makes the picture that diffusers makes: $width wide, $sampler, strength $strength, from $init",
    async (one) => {
      const reference = await goldenPicture(`image-to-image/${one.file}`);
      expect(psnrDb(pictures.get(one)!, reference)).toBeGreaterThanOrEqual(PSNR_MIN_DB);
    },
  );
});

describe("the VAE decoder", () => {
  it("decodes in tiles as diffusers does, which differs from a whole decode by the tone of tiles", async () => {
    const [one] = golden.cases;
    const latent = golden.array(one!.latent);
    const device = openDevice({ kind: "onnx", provider: "cpu", threads: 1 });
    const bundle = await readBundle(bundleDir);
    const decoder = await device.openVaeDecoder({ ...bundle, model: bundle.id, family: bundle.manifest.family });
    const decode = async (part: Float32Array, shape: LatentShape) => {
      const [pixels] = await decoder.decode({ model: bundle.id, latents: [part], shape, wide: true });
      return pixels!;
    };
    const tiled = toRgb(await decodeInTiles(latent, one!.shape, one!.tile, decode)).data;
    const whole = toRgb(await decode(latent, one!.shape)).data;
    await decoder.release();
    // Measured: 89 dB, 87 dB, and 30 dB between the two.
    expect(psnrDb(tiled, await goldenPicture("image-to-image/tiled.png"))).toBeGreaterThanOrEqual(PSNR_MIN_DB);
    expect(psnrDb(whole, await goldenPicture("image-to-image/whole.png"))).toBeGreaterThanOrEqual(PSNR_MIN_DB);
    expect(psnrDb(tiled, whole)).toBeLessThan(PSNR_MIN_DB);
  });
});

/** The picture as interleaved 8-bit RGB. */
function generate(
  pipeline: Pipeline,
  { file, init, prompt, seed, strength, ...wishes }: FromPicture,
): Promise<Uint8Array> {
  const { bundle, negativePrompt, steps, guidanceScale } = golden;
  const settings = { model: bundle.id, negativePrompt, steps, guidanceScale, karras: false, numImages: 1 };
  const bytes = readFileSync(new URL(`data/pipeline/${init}`, import.meta.url));
  const initImage = { bytes, digest: sha256(bytes), strength };
  return picture(pipeline, { id: file, ...settings, prompt, seed: BigInt(seed), ...wishes, initImage }, TIME_MAX_MS);
}
