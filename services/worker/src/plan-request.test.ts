import { beforeAll, describe, expect, it } from "vitest";
import { type Model, readModels } from "./models.ts";
import { planRequest } from "./plan-request.ts";
import type { GenerationRequest } from "./request.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";

describe("planRequest", () => {
  let model: Model;

  beforeAll(async () => {
    [model] = [...(await readModels([TEST_BUNDLE])).values()] as [Model];
  });

  it("runs the strength's share of the steps on a picture, in one pass", () => {
    const { phases } = plan({ initImage: PICTURE, width: 512, height: 512 });
    expect(phases).toMatchObject({ firstStep: 5, steps: 5, refine: undefined });
  });

  it("refuses a picture where the model has no VAE encoder", () => {
    const { vaeEncoderPath: _, ...bundle } = model.bundle;
    const refused = () => plan({ initImage: PICTURE }, { ...model, bundle });
    expect(refused).toThrow(expect.objectContaining({ code: "INVALID_REQUEST", field: "init_image" }));
    expect(refused).toThrow(/atelier-tiny has no VAE encoder/);
    expect(plan({}, { ...model, bundle }).phases.firstStep).toBe(0);
  });

  it("refuses to go on without the picture where images would have to start from it", () => {
    const { bytes: _, ...initImage } = PICTURE;
    expect(() => plan({ initImage })).toThrow(/init_image is missing/);
  });

  it("refuses previews of latents that nothing can draw", () => {
    const { previewMatrix: _, previewBias: __, ...manifest } = model.bundle.manifest;
    const plain = { ...model, bundle: { ...model.bundle, manifest, latentChannels: 16 } };
    const refused = () => plan({ previewEverySteps: 2 }, plain);
    expect(refused).toThrow(expect.objectContaining({ code: "INVALID_REQUEST", field: "preview_every_steps" }));
    expect(refused).toThrow(/latents of 16 channels/);
  });

  function plan(change: Partial<GenerationRequest>, of = model) {
    const request: GenerationRequest = {
      id: "r1",
      model: "atelier-tiny",
      prompt: "a red mug",
      negativePrompt: "",
      width: 256,
      height: 256,
      steps: 10,
      guidanceScale: 2.5,
      sampler: "dpmpp_2m",
      karras: false,
      seed: 1n,
      numImages: 1,
      encoding: { format: "png", quality: 90 },
      ...change,
    };
    return planRequest(request, new Map([["atelier-tiny", of]]));
  }
});

const PICTURE = { bytes: Uint8Array.of(1), digest: "sha256:00", strength: 0.5 };
