import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { checkRequest, type GenerationRequest } from "./request.ts";

const IMAGE = { bytes: Uint8Array.of(1), digest: "sha256:00" };

describe("checkRequest", () => {
  it("takes what lies within the limits, to the edge", () => {
    expect(refusalOf({})).toBeUndefined();
    expect(refusalOf({ width: 128, height: 1024, steps: 150, guidanceScale: 30, numImages: 8 })).toBeUndefined();
    expect(refusalOf({ width: 1024, steps: 1, guidanceScale: 0, seed: 2n ** 64n - 1n })).toBeUndefined();
    expect(refusalOf({ negativePrompt: "" })).toBeUndefined();
  });

  it.each([
    ["width", { width: 0 }, "width 0: a multiple of 8 within 128..1024"],
    ["width", { width: 7 }, "width 7: a multiple of 8 within 128..1024"],
    ["width", { width: 513 }, "width 513: a multiple of 8 within 128..1024"],
    ["height", { height: 1e9 }, "height 1000000000: a multiple of 8 within 128..1024"],
    ["height", { height: 256.5 }, "height 256.5"],
    ["width", { width: 1024, height: 1024 }, "width 1024x1024: an image has at most 524288 pixels"],
    ["steps", { steps: 0 }, "steps 0: a whole number within 1..150"],
    ["steps", { steps: 1e6 }, "steps 1000000: a whole number within 1..150"],
    ["guidance_scale", { guidanceScale: -1 }, "guidance_scale -1: a number within 0..30"],
    ["guidance_scale", { guidanceScale: Number.NaN }, "guidance_scale NaN"],
    ["num_images", { numImages: 0 }, "num_images 0: a whole number within 1..8"],
    ["num_images", { numImages: 9 }, "num_images 9"],
    ["quality", { encoding: { format: "jpeg" as const, quality: 101 } }, "quality 101: a whole number within 1..100"],
    ["seed", { seed: -1n }, "seed -1"],
    ["seed", { seed: 2n ** 64n - 1n, numImages: 2 }, "seed 18446744073709551615"],
    [
      "strength",
      { initImage: { ...IMAGE, strength: 0 } },
      "strength 0: with an init image a number over 0 and up to 1",
    ],
    ["strength", { initImage: { ...IMAGE, strength: 1.5 } }, "strength 1.5: "],
    ["strength", { initImage: { ...IMAGE, strength: Number.NaN } }, "strength NaN: "],
    ["prompt", { prompt: "" }, "prompt is empty"],
    ["prompt", { prompt: "a".repeat(100_000) }, "prompt has 100000 characters"],
    ["prompt", { prompt: "a\0b" }, "U+0000"],
    ["negative_prompt", { negativePrompt: "\ud800" }, "lone surrogate"],
  ])("refuses a bad %s, naming it, its value and what is allowed: %o", (field, change, message) => {
    const refusal = refusalOf(change);
    expect(refusal).toMatchObject({ code: "INVALID_REQUEST", field });
    expect(refusal?.detail).toContain(message);
  });
});

const LIMITS = {
  sizeMin: 128,
  sizeMax: 1024,
  sizeMultiple: 8,
  pixelsMax: 1024 * 512,
  stepsMax: 150,
  guidanceScaleMax: 30,
  numImagesMax: 8,
};

function refusalOf(change: Partial<GenerationRequest>): ServingError | undefined {
  const request: GenerationRequest = {
    id: "r",
    model: "tiny",
    prompt: "a mug",
    negativePrompt: "bad",
    width: 256,
    height: 256,
    steps: 25,
    guidanceScale: 2.5,
    sampler: "euler",
    karras: false,
    seed: 1n,
    numImages: 1,
    encoding: { format: "png", quality: 90 },
    ...change,
  };
  try {
    checkRequest(request, LIMITS);
    return undefined;
  } catch (error) {
    if (error instanceof ServingError) return error;
    throw error;
  }
}
