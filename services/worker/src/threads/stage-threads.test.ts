import { cp, mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Model, readModels } from "../models.ts";
import { copyBundle } from "../testing/copied-bundle.ts";
import { TEST_BUNDLE } from "../testing/test-bundle.ts";
import { openStageThreads, type StageThreads } from "./stage-threads.ts";

const WIDE = { narrowLanes: false };

describe("the threads of the stages", () => {
  let folder: string;
  let first: Model;
  let second: Model;
  let threads: StageThreads;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-threads-"));
    const models = await readModels([TEST_BUNDLE, await copyBundle(join(folder, "second"), "second")]);
    [first, second] = [...models.values()] as [Model, Model];
    threads = await openStageThreads({
      device: { kind: "onnx", provider: "cpu", threads: 1 },
      limits: { queueMax: 4, stepBatchMax: 2, ageingMs: 2000, numImagesMax: 2 },
      stepTimes: [],
      onReport: () => {},
      onFatal: (error) => {
        throw error;
      },
    });
  });
  afterAll(async () => {
    await threads.close();
    await rm(folder, { recursive: true });
  });

  it("open a model when told to, and say which stages have it", async () => {
    const stages: string[] = [];
    const { weightsBytes } = await threads.openModel(first, { ...WIDE, onNetwork: (stage) => stages.push(stage) });
    const { parts } = first.bundle.manifest;
    const fileBytes = [
      "text_encoder/model",
      "clip/text_model",
      "unet/model",
      "vae_decoder/model",
      "vae_encoder/model",
    ].map((name) => parts[`${name}.onnx`]!.bytes);
    expect(weightsBytes).toBe(fileBytes.reduce((sum, bytes) => sum + bytes));
    expect(stages.toSorted()).toEqual(["denoise", "imageDecode", "imageEncode", "textEncode"]);
    expect((await encode(first)).promptChunks).toBe(1);
  });

  it("close one of two models and go on with the other", async () => {
    await threads.openModel(second, WIDE);
    const other = await encode(second);
    await threads.closeModel("second");
    expect((await encode(first)).conditioning.prompt).toEqual(other.conditioning.prompt);
  });

  it("open a model again that was closed", async () => {
    await threads.openModel(second, WIDE);
    expect((await encode(second)).promptChunks).toBe(1);
    await threads.closeModel("second");
  });

  it("name every network that does not open, keep nothing of the model, and can open it once it is mended", async () => {
    for (const path of [second.bundle.unetPath, second.bundle.vaeDecoderPath]) await truncate(path, 1000);
    const failure = await threads.openModel(second, WIDE).catch((error: AggregateError) => error);
    const errors = (failure as AggregateError).errors as { code: string; detail: string }[];
    expect(errors.map(({ code }) => code)).toEqual(["INVALID_BUNDLE", "INVALID_BUNDLE"]);
    expect(errors.map(({ detail }) => detail).join("\n")).toMatch(/^unet\/model\.onnx: .*\nvae_decoder\/model\.onnx: /);

    await cp(TEST_BUNDLE, second.bundle.dir, { recursive: true, filter: (path) => !path.endsWith("atelier.json") });
    await threads.openModel(second, WIDE); // "opened once" would stop the test if the text encoder were still there
    expect((await encode(second)).promptChunks).toBe(1);
  });

  function encode({ bundle }: Model) {
    const work = {
      model: bundle.id,
      prompt: "a red mug",
      negativePrompt: undefined,
      deadlineAtMs: Date.now() + 60_000,
    };
    return threads.textEncode.run("request", work, { signal: new AbortController().signal });
  }
});
