import { ReceiptSchema, Sampler } from "@atelier/proto";
import { create, isFieldSet, toJson } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { receiptFromWire } from "../wire.ts";
import { completedToWire } from "./generation-wire.ts";

/** Nothing in it is what it would be if it were left out. */
const receipt = create(ReceiptSchema, {
  parameters: {
    model: "m",
    prompt: "a red mug",
    negativePrompt: "blurred",
    width: 256,
    height: 320,
    steps: 7,
    guidanceScale: 2.5,
    sampler: Sampler.UNIPC,
    seed: 2n ** 53n - 1n,
    numImages: 2,
    karrasSigmas: true,
    strength: 0.5,
    initImageDigest: "sha256:01",
  },
  modelDigest: "sha256:02",
  workerId: "w1",
  device: "cpu",
  simulated: true,
  hiresFix: { nativeWidth: 128, nativeHeight: 160, strength: 0.25, upscale: "bilinear" },
  times: { queueMs: 1, textEncodeMs: 2, denoiseMs: 3, imageDecodeMs: 4 },
  promptChunks: 1,
  embeddingsCached: true,
  preemptions: 2,
  resumedAtSteps: [3],
  batchDifference: 0.5,
  tiledDecode: true,
  reusedSteps: 4,
  startLatentDigest: "sha256:03",
  deviceMs: 5,
});

describe("a receipt on its way from the worker through the gateway to a gRPC caller", () => {
  it("is whole in this test", () => {
    expect(ReceiptSchema.fields.filter((field) => !isFieldSet(receipt, field)).map(({ name }) => name)).toEqual([]);
  });

  it("arrives as it left, but for what the gateway keeps to itself", () => {
    const { receipt: passed } = completedToWire("gen_1", { receipt: receiptFromWire(receipt), outcome: "miss" });
    const { startLatentDigest: _, ...rest } = toJson(ReceiptSchema, receipt) as Record<string, unknown>;
    expect(toJson(ReceiptSchema, create(ReceiptSchema, passed))).toEqual(rest);
  });
});
