import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import { createPipeline, type Pipeline } from "@atelier/worker";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type FamilyPicture, goldenPicture, picture, psnrDb, readPictures } from "./pictures.ts";

/** What `atelier_trainer quantize` measured on its own prompts is 48 dB; 8 bits of one layer too many cost ten. */
const PSNR_MIN_DB = 40;
const TIME_MAX_MS = 300_000;
const NETWORKS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"] as const;

const golden = readPictures<{ readonly cases: readonly FamilyPicture[] }>("families");
const cases = golden.cases.filter(({ bundle }) => bundle === "golden-sd1");

describe("the worker with a bundle that the trainer quantised to eight bits", () => {
  let folder: string;
  let pipeline: Pipeline;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-int8-"));
    await unpack(folder);
    pipeline = await createPipeline({
      bundleDirs: [folder],
      device: { kind: "onnx", provider: "cpu", threads: 2 },
      limits: { queueMax: cases.length, stepBatchMax: 4 },
      onFatal: (error) => {
        throw error;
      },
    });
  }, TIME_MAX_MS);
  afterAll(async () => {
    await pipeline?.close();
    await rm(folder, { recursive: true });
  });

  it("loads it under an id of its own, with the weights' way noted", () => {
    const { manifest } = pipeline.models.get("golden-sd1-int8")!.bundle;
    expect(manifest.trained).toMatchObject({ quantised: { mode: "weight-only", keep: expect.any(Array) } });
  });

  it.each(cases)(
    "makes nearly the picture that diffusers makes of the float weights: $sampler, $prompt",
    async (one) => {
      const { bundle: _, file, seed, ...wishes } = one;
      const request = { ...wishes, id: file, model: "golden-sd1-int8", seed: BigInt(seed), numImages: 1 };
      const reference = await goldenPicture(`families/${file}`);
      const likeness = psnrDb(await picture(pipeline, request, TIME_MAX_MS), reference);
      expect(likeness).toBeGreaterThanOrEqual(PSNR_MIN_DB);
      expect(likeness, "eight bits are not float").toBeLessThan(75);
    },
  );
});

/** golden-sd1 with the graphs and the manifest that write_int8.py kept of the quantised one. */
async function unpack(folder: string): Promise<void> {
  const original = fileURLToPath(new URL("families/golden-sd1", import.meta.url));
  await cp(original, folder, { recursive: true });
  const quantised = new URL("data/int8/", import.meta.url);
  await cp(new URL("atelier.json", quantised), join(folder, "atelier.json"));
  for (const network of NETWORKS) {
    const graph = gunzipSync(await readFile(new URL(`${network}.onnx.gz`, quantised)));
    await writeFile(join(folder, network, "model.onnx"), graph);
  }
}
