import { describe, expect, it } from "vitest";
import { completeRequestOf } from "../testing/cache-world.ts";
import { keyOf, pictureDigest, variantSeed } from "./cache-key.ts";

const MADE = { modelDigest: "sha256:00", keeper: "tenant" };
const digest = (changes: Parameters<typeof completeRequestOf>[0] = {}) =>
  pictureDigest(completeRequestOf(changes), MADE);
const init = (bytes: number, strength = 0.5) => ({ bytes: Uint8Array.of(bytes), strength });

describe("pictureDigest", () => {
  it.each([
    ["the prompt", { prompt: "a red mug" }],
    ["the negative prompt", { negativePrompt: "blurry" }],
    ["the model", { model: "other" }],
    ["the width", { width: 512 }],
    ["the height", { height: 512 }],
    ["the steps", { steps: 26 }],
    ["the guidance", { guidanceScale: 3 }],
    ["the sampler", { sampler: "euler" as const }],
    ["the spacing of its noise levels", { karrasSigmas: true }],
    ["the number of images", { numImages: 2 }],
    ["the format", { format: "jpeg" as const }],
    ["the quality", { format: "jpeg" as const, quality: 80 }],
    ["a picture to start from", { initPicture: init(1) }],
    ["another such picture", { initPicture: init(2) }],
    ["its strength", { initPicture: init(1, 0.6) }],
    ["an adapter", { adapters: [{ name: "brand", weight: 1 }] }],
    ["its weight", { adapters: [{ name: "brand", weight: 0.5 }] }],
  ])("is another with another value of %s", (_what, changes) => {
    expect(digest(changes)).not.toBe(digest());
    expect(digest(changes)).toBe(digest(changes));
  });

  it("tells all of those apart from each other", () => {
    const all = [
      digest({ initPicture: init(1) }),
      digest({ initPicture: init(2) }),
      digest({ initPicture: init(1, 0.6) }),
      digest({ format: "jpeg" }),
      digest({ format: "jpeg", quality: 80 }),
      digest({ width: 512 }),
      digest({ height: 512 }),
      digest({ prompt: "ab", negativePrompt: "c" }),
      digest({ prompt: "a", negativePrompt: "bc" }),
    ];
    expect(new Set(all).size).toBe(all.length);
  });

  it("is the same whoever asks and whatever is shown on the way", () => {
    expect(digest({ id: "another", previewEvery: 5, seed: 9 })).toBe(digest());
  });

  it("is the same whether the model's own spacing is asked for or left to be", () => {
    expect(digest({ karrasSigmas: false })).toBe(digest());
  });

  it("is the same for two spellings of one text in Unicode", () => {
    expect(digest({ prompt: "caf\u00e9" })).toBe(digest({ prompt: "cafe\u0301" }));
    expect(digest({ prompt: "cafe" })).not.toBe(digest({ prompt: "caf\u00e9" }));
  });

  it("is another for another bundle of the model, and for whom it is kept", () => {
    const asked = completeRequestOf();
    expect(pictureDigest(asked, { ...MADE, modelDigest: "sha256:01" })).not.toBe(digest());
    expect(pictureDigest(asked, { ...MADE, keeper: "other" })).not.toBe(digest());
  });
});

describe("seeds", () => {
  it("give keys of their own; variants have seeds that a worker takes", () => {
    const one = digest();
    expect(keyOf(one, 1)).not.toBe(keyOf(one, 2));
    const seeds = Array.from({ length: 64 }, (_, index) => variantSeed(one, index));
    expect(new Set(seeds).size).toBe(64);
    for (const seed of seeds) expect(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32).toBe(true);
    expect(variantSeed(digest({ prompt: "other" }), 0)).not.toBe(seeds[0]);
  });
});
