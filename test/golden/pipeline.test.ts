import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { SamplerName } from "@atelier/diffusion";
import { createPipeline, type Pipeline } from "@atelier/worker";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { goldenPicture, picture, psnrDb, readPictures } from "./pictures.ts";

interface Picture {
  readonly file: string;
  readonly prompt: string;
  readonly seed: number;
  readonly sampler: SamplerName;
  readonly karras: boolean;
  readonly width: number; // of the model's native size, or more: then made in two passes
  readonly height: number;
}

interface Pictures {
  readonly bundle: { readonly id: string; readonly parts: Readonly<Record<string, string>> }; // SHA-256 by file
  readonly negativePrompt: string;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly cases: readonly Picture[];
}

/** Where pictures are equal but for rounding to 8 bits. Measured with random weights: 84 dB and more. */
const PSNR_MIN_DB = 60;

/** Some 20 s on two idle cores; the rest is for busy ones. */
const TIME_MAX_MS = 600_000;

const golden = readPictures<Pictures>("pipeline");
const bundleDir = fileURLToPath(new URL("../../deploy/models/atelier-tiny/", import.meta.url));

describe("the worker's pipeline", () => {
  let pipeline: Pipeline;
  let pictures: ReadonlyMap<Picture, Uint8Array>;

  beforeAll(async () => {
    pipeline = await createPipeline({
      bundleDirs: [bundleDir],
      device: { kind: "onnx", provider: "cpu", threads: 2 },
      limits: { queueMax: golden.cases.length, stepBatchMax: 4 },
      onFatal: (error) => {
        throw error;
      },
    });
    // All at once, so that samplers, seeds and prompts share step batches as they do in production.
    pictures = new Map(
      await Promise.all(golden.cases.map(async (one) => [one, await generate(pipeline, one)] as const)),
    );
  }, TIME_MAX_MS);
  afterAll(() => pipeline?.close());

  it.each(Object.entries(golden.bundle.parts))("is tested with the %s that the pictures belong to", (file, sha256) => {
    expect(
      createHash("sha256")
        .update(readFileSync(bundleDir + file))
        .digest("hex"),
    ).toBe(sha256);
  });

  it.each(golden.cases)(
    "makes the picture that diffusers makes: $width wide, $sampler, karras $karras, seed $seed, $prompt",
    async (one) => {
      const reference = await goldenPicture(`pipeline/${one.file}`);
      expect(psnrDb(pictures.get(one)!, reference)).toBeGreaterThanOrEqual(PSNR_MIN_DB);
    },
  );
});

function generate(pipeline: Pipeline, { file, prompt, seed, ...wishes }: Picture): Promise<Uint8Array> {
  const { bundle, negativePrompt, steps, guidanceScale } = golden;
  const settings = { model: bundle.id, negativePrompt, steps, guidanceScale, numImages: 1 };
  return picture(pipeline, { id: file, ...settings, prompt, seed: BigInt(seed), ...wishes }, TIME_MAX_MS);
}
