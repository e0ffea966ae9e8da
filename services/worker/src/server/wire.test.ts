import { SAMPLERS } from "@atelier/diffusion";
import { type GenerateRequest, GenerateRequestSchema, ImageFormat, Sampler } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { readGenerateRequest, wireSampler } from "./wire.ts";

describe("readGenerateRequest", () => {
  it("gives every field of the message its own name", () => {
    expect(readGenerateRequest(message({}))).toEqual({
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
      previewEverySteps: 3,
    });
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
    ["resume_from", { resumeFrom: [{}] as unknown as GenerateRequest["resumeFrom"] }],
    ["checkpoint_every_steps", { checkpointEverySteps: 5 }],
  ])("refuses a message with a bad %s: %o", (field, change) => {
    const read = () => readGenerateRequest({ ...message({}), ...change } as GenerateRequest);
    expect(read).toThrow(expect.objectContaining({ code: "INVALID_REQUEST", field }));
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
    previewEverySteps: 3,
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
