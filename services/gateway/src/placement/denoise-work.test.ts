import { describe, expect, it } from "vitest";
import { imageRequest, modelView } from "../testing/views.ts";
import { denoiseWork } from "./denoise-work.ts";

describe("denoiseWork", () => {
  it("is a row for each guidance branch, over the latent's places", () => {
    const request = imageRequest({ width: 512, height: 256, steps: 20, numImages: 3 });
    const expected = { model: "m", images: 3, passes: [{ area: 64 * 32, steps: 20 }] };
    expect(denoiseWork({ ...request, guidanceScale: 7 }, model())).toEqual({ ...expected, rows: 2 });
    expect(denoiseWork({ ...request, guidanceScale: 1 }, model())).toEqual({ ...expected, rows: 1 });
  });

  it("is two passes above the size where the model makes two", () => {
    const twoPasses = { abovePixels: 320 * 320, strength: 0.5, scaleMax: 0 };
    const at = (side: number) =>
      denoiseWork(imageRequest({ width: side, height: side, steps: 25 }), model(twoPasses)).passes;
    expect(at(320)).toEqual([{ area: 40 * 40, steps: 25 }]);
    expect(at(512)).toEqual([
      { area: 32 * 32, steps: 25 },
      { area: 64 * 64, steps: 12 },
    ]);
  });

  it("starts larger where the second pass may only be so many times the first's size", () => {
    const twoPasses = { abovePixels: 320 * 320, strength: 0.5, scaleMax: 1.5 };
    const { passes } = denoiseWork(imageRequest({ width: 768, height: 768, steps: 10 }), model(twoPasses));
    expect(passes.map(({ area }) => area)).toEqual([64 * 64, 96 * 96]);
  });

  it("is less for a request that begins later: from a picture, or from another's latent", () => {
    const twoPasses = { abovePixels: 1, strength: 0.5, scaleMax: 0 };
    const initPicture = { bytes: new Uint8Array(1), strength: 0.6 };
    const { passes } = denoiseWork(imageRequest({ steps: 20, initPicture }), model(twoPasses));
    expect(passes).toEqual([{ area: 32 * 32, steps: 12 }]);
    const shape = { channels: 4, height: 32, width: 32 };
    const startLatent = { ...shape, latent: new Uint8Array(1), stepIndex: 8, modelDigest: "", simulated: false };
    expect(denoiseWork(imageRequest({ steps: 20, startLatent }), model()).passes).toEqual([
      { area: 32 * 32, steps: 12 },
    ]);
  });
});

function model(twoPasses?: ReturnType<typeof modelView>["twoPasses"]) {
  return { ...modelView("m"), twoPasses };
}
