import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { completeRequest } from "./complete-request.ts";
import type { ImageRequestDraft } from "./image-request.ts";
import { modelView, workerView } from "./testing/views.ts";

/** The first bytes of one. */
const PNG = "iVBORw0KGgo=";

const fleet = [
  workerView("a", { models: [modelView("m", { pixelsMax: 768 * 1024, stepsMax: 100, numImagesMax: 4 })] }),
];

describe("completeRequest", () => {
  it("fills in what the caller left open from the model", () => {
    expect(completeRequest(draft(), fleet)).toMatchObject({ model: "m", guidanceScale: 2.5, sampler: "dpmpp_2m" });
  });

  it("keeps what the caller chose", () => {
    const chosen = { model: "m", guidanceScale: 0, sampler: "euler", seed: 0, width: 768, height: 1024 } as const;
    expect(completeRequest(draft(chosen), fleet)).toMatchObject(chosen);
  });

  it("leaves the seed open where the caller named none", () => {
    expect(completeRequest(draft(), fleet).seed).toBeUndefined();
  });

  it.each<[string, RegExp, Partial<ImageRequestDraft>]>([
    ["width", /width is 0; it must be a multiple of 8 from 64 to 1024 for m/, { width: 0 }],
    ["width", /width is 7;/, { width: 7 }],
    ["height", /height is 513; it must be a multiple of 8/, { height: 513 }],
    ["width", /width is 1000000000; .*from 64 to 1024/, { width: 1e9 }],
    ["width", /width is -512;/, { width: -512 }],
    ["width", /1024 x 1024 = 1048576 pixels; m makes at most 786432/, { width: 1024, height: 1024 }],
    ["steps", /steps is 101; it must be at most 100 for m/, { steps: 101 }],
    ["num_images", /num_images is 5; it must be at most 4/, { numImages: 5 }],
    ["seed", /the last seed would be above 9007199254740991/, { seed: Number.MAX_SAFE_INTEGER, numImages: 2 }],
    [
      "karras_sigmas",
      /euler_a has no such spacing; dpmpp_2m, .*unipc have/,
      { sampler: "euler_a", karrasSigmas: true },
    ],
    ["quality", /quality is 80, but png has none/, { quality: 80 }],
    ["strength", /strength is 0.5, but there is no init_image/, { strength: 0.5 }],
    ["init_image", /init_image is not base64/, { initImage: "#!?" }],
    ["init_image", /init_image is not base64/, { initImage: `${PNG}=` }],
    ["init_image", /init_image is a data: URL/, { initImage: `data:image/png;base64,${PNG}` }],
    ["init_image", /init_image \(0 bytes\) is no PNG, JPEG or WebP file/, { initImage: "" }],
    ["init_image", /init_image \(6 bytes\) is no PNG, JPEG or WebP file/, { initImage: "R0lGODlh" }],
    ["prompt", /prompt is empty/, { prompt: "" }],
    ["prompt", /prompt is empty/, { prompt: "  \n" }],
    ["prompt", /prompt has 100000 characters/, { prompt: "x".repeat(100_000) }],
    ["prompt", /U\+0000/, { prompt: "a\0b" }],
    ["prompt", /surrogate/, { prompt: "a\ud800b" }],
    ["negative_prompt", /negative_prompt .*surrogate/, { negativePrompt: "\udc00" }],
  ])("refuses a bad %s, saying %s", (field, message, changes) => {
    const refused = refusal(changes);
    expect(refused).toMatchObject({ code: "INVALID_REQUEST", field });
    expect(refused.detail).toMatch(message);
  });

  it.each(["iVBORw0KGgo=", "/9j/4AAQ", "UklGRgAAAABXRUJQ"])(
    "takes the picture %s, at a strength of 0.6",
    (initImage) => {
      const bytes = Buffer.from(initImage, "base64");
      expect(completeRequest(draft({ initImage }), fleet).initPicture).toEqual({ bytes, strength: 0.6 });
      expect(completeRequest(draft({ initImage, strength: 1 }), fleet).initPicture?.strength).toBe(1);
    },
  );

  it("allows the last seed there is, an empty negative prompt, and a quality where the format has one", () => {
    expect(completeRequest(draft({ seed: Number.MAX_SAFE_INTEGER }), fleet).seed).toBe(Number.MAX_SAFE_INTEGER);
    expect(completeRequest(draft({ negativePrompt: "" }), fleet).negativePrompt).toBe("");
    expect(completeRequest(draft({ format: "jpeg", quality: 80 }), fleet).quality).toBe(80);
  });
});

function refusal(changes: Partial<ImageRequestDraft>): ServingError {
  try {
    completeRequest(draft(changes), fleet);
  } catch (error) {
    if (error instanceof ServingError) return error;
    throw error;
  }
  throw new Error("it was not refused");
}

function draft(changes: Partial<ImageRequestDraft> = {}): ImageRequestDraft {
  return {
    id: "r1",
    model: undefined,
    prompt: "白色T恤",
    negativePrompt: "",
    width: 512,
    height: 512,
    steps: 25,
    guidanceScale: undefined,
    sampler: undefined,
    seed: undefined,
    numImages: 1,
    format: "png",
    quality: undefined,
    ...changes,
  };
}
