import { describe, expect, it } from "vitest";
import type { GenerationReceipt } from "../image-request.ts";
import { RECEIPT_HEADER_BYTES_MAX, receiptForHeader } from "./receipt.ts";

describe("the receipt in a header", () => {
  it("is base64url of JSON, whatever names it holds, and leaves the prompts out", () => {
    const text = receiptForHeader(made({ model: "模型\r\nx-evil: 1", prompt: "杯".repeat(3_000) }))!;
    expect(text).toMatch(/^[\w-]+$/);
    const read = JSON.parse(Buffer.from(text, "base64url").toString());
    expect(read).toMatchObject({ model: "模型\r\nx-evil: 1", seed: 7, cache: "hit", times: { denoise_ms: 3 } });
    expect(Object.keys(read).filter((name) => name.includes("prompt") && name !== "prompt_chunks")).toEqual([]);
  });

  it("is left out rather than longer than proxies carry", () => {
    const fits = receiptForHeader(made({ attempts: 3, workerIds: ["w1", "w2", "w3"] }))!;
    expect(fits.length).toBeLessThanOrEqual(RECEIPT_HEADER_BYTES_MAX);
    expect(
      receiptForHeader(made({ attempts: 200, workerIds: Array.from({ length: 200 }, () => "a-worker-of-a-name") })),
    ).toBe(undefined);
  });
});

function made(changes: Partial<GenerationReceipt>) {
  const receipt: GenerationReceipt = {
    model: "m",
    modelDigest: `sha256:${"0".repeat(64)}`,
    workerId: "w1",
    device: "cpu",
    simulated: false,
    prompt: "a red mug",
    negativePrompt: "blurred",
    width: 512,
    height: 512,
    steps: 25,
    guidanceScale: 2.5,
    sampler: "dpmpp_2m",
    karrasSigmas: false,
    seed: 7,
    numImages: 1,
    promptChunks: 1,
    hiresFix: { nativeWidth: 256, nativeHeight: 256, strength: 0.5, upscale: "bilinear" },
    strength: 0.5,
    initImageDigest: `sha256:${"0".repeat(64)}`,
    tiledDecode: true,
    embeddingsCached: false,
    preemptions: 0,
    batchDifference: 0,
    attempts: 1,
    workerIds: ["w1"],
    resumedAtSteps: [],
    reusedSteps: 0,
    times: { queueMs: 1, textEncodeMs: 2, denoiseMs: 3, imageDecodeMs: 4 },
    ...changes,
  };
  return { generation: { receipt, pictures: [] }, outcome: "hit" as const, request: {} };
}
