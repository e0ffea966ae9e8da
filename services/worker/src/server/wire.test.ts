import { ManualClock } from "@atelier/core";
import { SAMPLERS } from "@atelier/diffusion";
import {
  DenoiseStateSchema,
  type GenerateRequest,
  GenerateRequestSchema,
  ImageFormat,
  PriorityClass,
  Sampler,
  ServiceOrderSchema,
} from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { readGenerateRequest, wireSampler } from "./wire.ts";

describe("readGenerateRequest", () => {
  it("gives every field of the message its own name", () => {
    expect(readGenerateRequest(message({}), new ManualClock(5000))).toEqual({
      id: "r1",
      model: "tiny",
      prompt: "a mug",
      negativePrompt: "bad",
      width: 256,
      height: 320,
      steps: 25,
      guidanceScale: 2.5,
      sampler: "unipc",
      karras: true,
      seed: 2n ** 63n,
      numImages: 2,
      encoding: { format: "webp", quality: 80 },
      resumeFrom: new Map(),
      checkpointEverySteps: 5,
      previewEverySteps: 3,
      order: { priorityClass: "bulk", tenant: "shop", weight: 2.5, finishAtMs: 5_700 },
    });
  });

  it("takes a request that says nothing of its order as standard, of nobody, of weight 1, without a wish", () => {
    const nothing = { priorityClass: "standard", tenant: "", weight: 1, finishAtMs: undefined };
    expect(readGenerateRequest(message({ order: undefined })).order).toEqual(nothing);
    const unspecified = create(ServiceOrderSchema, {});
    expect(readGenerateRequest(message({ order: unspecified })).order).toEqual(nothing);
  });

  it("takes 0 as the default quality", () => {
    expect(readGenerateRequest(message({ quality: 0 })).encoding.quality).toBe(90);
  });

  it("knows every sampler there is", () => {
    for (const sampler of SAMPLERS) {
      const parameters = { ...message({}).parameters!, sampler: wireSampler(sampler) };
      expect(readGenerateRequest(message({ parameters })).sampler).toBe(sampler);
    }
  });

  it.each([
    ["request_id", { requestId: "" }],
    ["parameters", { parameters: undefined }],
    ["format", { format: ImageFormat.UNSPECIFIED }],
    ["format", { format: 99 as ImageFormat }],
    ["order.tenant_weight", { order: create(ServiceOrderSchema, { tenantWeight: -1 }) }],
    ["order.tenant_weight", { order: create(ServiceOrderSchema, { tenantWeight: Number.NaN }) }],
    ["order.priority_class", { order: create(ServiceOrderSchema, { priorityClass: 9 as PriorityClass }) }],
    ["resume_from", { resumeFrom: [create(DenoiseStateSchema)] }],
  ])("refuses a message with a bad %s: %o", (field, change) => {
    const read = () => readGenerateRequest({ ...message({}), ...change } as GenerateRequest);
    expect(read).toThrow(expect.objectContaining({ code: "INVALID_REQUEST", field }));
  });

  it("reads what images start from, and fills in the picture's digest", () => {
    const parameters = { ...message({}).parameters!, strength: 0.6 };
    const initImage = Uint8Array.of(1, 2, 3);
    const digest = "sha256:039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81";
    const read = readGenerateRequest(message({ parameters, initImage })).initImage;
    expect(read).toEqual({ bytes: initImage, digest, strength: 0.6 });
    const stated = { ...parameters, initImageDigest: digest };
    expect(readGenerateRequest(message({ parameters: stated, initImage })).initImage).toEqual(read);
  });

  it.each([
    ["strength", { strength: 0.6 }, new Uint8Array(), /strength 0.6: there is no init_image/],
    ["strength", { strength: Number.NaN }, new Uint8Array(), /strength NaN: there is no init_image/],
    ["init_image_digest", { initImageDigest: "sha256:00" }, new Uint8Array(), /"sha256:00": there is no init_image/],
    [
      "init_image_digest",
      { strength: 0.6, initImageDigest: "sha256:00" },
      Uint8Array.of(1, 2, 3),
      /is "sha256:00", but the init_image that came has sha256:039058c6/,
    ],
  ])("refuses a %s that has no picture, or another", (field, change, initImage, complaint) => {
    const parameters = { ...message({}).parameters!, ...change };
    const read = () => readGenerateRequest(message({ parameters, initImage }));
    expect(read).toThrow(expect.objectContaining({ code: "INVALID_REQUEST", field }));
    expect(read).toThrow(complaint);
  });

  it("refuses an unspecified sampler, naming those there are", () => {
    const parameters = { ...message({}).parameters!, sampler: Sampler.UNSPECIFIED };
    expect(() => readGenerateRequest(message({ parameters }))).toThrow(/sampler 0 is not one of 1 \(dpmpp_2m\)/);
  });
});

function message(change: Partial<GenerateRequest>): GenerateRequest {
  const request = create(GenerateRequestSchema, {
    requestId: "r1",
    format: ImageFormat.WEBP,
    quality: 80,
    checkpointEverySteps: 5,
    previewEverySteps: 3,
    order: { priorityClass: PriorityClass.BULK, tenant: "shop", tenantWeight: 2.5, finishWithinMs: 700 },
    parameters: {
      model: "tiny",
      prompt: "a mug",
      negativePrompt: "bad",
      width: 256,
      height: 320,
      steps: 25,
      guidanceScale: 2.5,
      sampler: Sampler.UNIPC,
      karrasSigmas: true,
      seed: 2n ** 63n,
      numImages: 2,
    },
  });
  return { ...request, ...change };
}
