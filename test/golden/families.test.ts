import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { createPipeline, type Pipeline, readBundle } from "@atelier/worker";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type FamilyPicture, goldenPicture, picture, psnrDb, readPictures } from "./pictures.ts";

interface Picture extends FamilyPicture {
  /** Image to image: what it starts from, and how much of the schedule is run. */
  readonly initImage?: string;
  readonly strength?: number;
}

interface Pictures {
  /** Digest by id. */
  readonly bundles: Readonly<Record<string, string>>;
  readonly cases: readonly Picture[];
  readonly imageToImage: readonly Picture[];
}

/**
 * Where pictures are equal but for rounding to 8 bits. Measured: 84 dB and more, half of them identical. Networks as
 * small as these hardly heed their extras: a picture of 64 x 96 given as 96 x 64 still comes to 58 dB.
 */
const PSNR_MIN_DB = 75;
/** Some seconds on two idle cores; the rest is for busy ones. */
const TIME_MAX_MS = 300_000;
/** Standard deviation in grey levels, below which a picture is too flat to prove anything. */
const CONTRAST_MIN = 30;

const golden = readPictures<Pictures>("families");
const cases = [...golden.cases, ...golden.imageToImage];
const bundleDirs = Object.keys(golden.bundles).map((id) => fileURLToPath(new URL(`families/${id}`, import.meta.url)));

describe("the worker's pipeline with the Stable Diffusion families side by side", () => {
  let pipeline: Pipeline;
  let pictures: ReadonlyMap<Picture, Uint8Array>;

  beforeAll(async () => {
    pipeline = await createPipeline({
      bundleDirs,
      device: { kind: "onnx", provider: "cpu", threads: 2 },
      limits: { queueMax: cases.length, stepBatchMax: 4 },
      onFatal: (error) => {
        throw error;
      },
    });
    // All at once, so that prompts share runs of the text encoders, and steps of several models take turns.
    pictures = new Map(await Promise.all(cases.map(async (one) => [one, await make(pipeline, one)] as const)));
  }, TIME_MAX_MS);
  afterAll(() => pipeline?.close());

  it.each(Object.entries(golden.bundles))("is tested with the %s that the pictures belong to", async (id, digest) => {
    expect(pipeline.models.get(id)?.bundle.digest).toBe(digest);
  });

  it.each(golden.cases)(
    "makes the picture that diffusers makes: $bundle, $width x $height, $sampler, guidance $guidanceScale, $prompt",
    expectGolden,
  );

  it.each(golden.imageToImage)(
    "makes of a picture the one that diffusers makes of it: $bundle, $width x $height, $sampler, strength $strength",
    expectGolden,
  );

  it("covers every family with a negative prompt, an empty one, without guidance, and from a picture", async () => {
    const bundles = await Promise.all(bundleDirs.map((dir) => readBundle(dir, { lenderDirs: bundleDirs })));
    expect(bundles.map(({ manifest }) => manifest.family).toSorted()).toEqual(["sd1", "sd2", "sdxl"]);
    for (const { id } of bundles) {
      const own = golden.cases.filter(({ bundle }) => bundle === id);
      const guided = own.filter(({ guidanceScale }) => guidanceScale > 1);
      expect(guided.filter(({ negativePrompt }) => negativePrompt !== "").length).toBeGreaterThanOrEqual(2);
      expect(guided.some(({ negativePrompt }) => negativePrompt === "")).toBe(true);
      expect(guided.length).toBeLessThan(own.length);
      expect(golden.imageToImage.some(({ bundle }) => bundle === id)).toBe(true);
    }
  });

  async function expectGolden(one: Picture): Promise<void> {
    const reference = await goldenPicture(`families/${one.file}`);
    expect(contrast(reference)).toBeGreaterThanOrEqual(CONTRAST_MIN);
    expect(psnrDb(pictures.get(one)!, reference)).toBeGreaterThanOrEqual(PSNR_MIN_DB);
  }
});

async function make(
  pipeline: Pipeline,
  { bundle, file, seed, initImage, strength, ...wishes }: Picture,
): Promise<Uint8Array> {
  const request = { ...wishes, id: file, model: bundle, seed: BigInt(seed), numImages: 1 };
  if (initImage === undefined || strength === undefined) return picture(pipeline, request, TIME_MAX_MS);
  const bytes = await readFile(new URL(`data/families/${initImage}`, import.meta.url));
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
  return picture(pipeline, { ...request, initImage: { bytes, digest, strength } }, TIME_MAX_MS);
}

/** Standard deviation of 8-bit values. */
function contrast(values: Uint8Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}
