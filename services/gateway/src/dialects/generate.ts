import { z } from "zod";
import type { Served } from "../generations/ports.ts";
import { base64Of } from "../http/pictures-json.ts";
import { IMAGE_FORMATS, type ImageFormatName, type ImageRequestDraft } from "../image-request.ts";
import { SAMPLER_NAMES } from "../samplers.ts";
import { receipt, receiptToJson } from "./receipt.ts";

const DIMENSION = "Pixels. The model's own limits and multiple are at /v1/models.";

/** The body of POST /generate. Sizes have no bounds here: the model's are checked later, and named in the refusal. */
export const generateBody = z
  .strictObject({
    prompt: z.string().describe("What to draw, in any language that the model knows."),
    negative_prompt: z.string().default("低分辨率, 模糊").describe("What to steer away from."),
    width: z.int().default(512).describe(DIMENSION),
    height: z.int().default(512).describe(DIMENSION),
    steps: z.int().min(1).max(150).default(25).describe("Denoising steps; more take longer and refine."),
    seed: z
      .int()
      .min(0)
      .optional()
      .describe(
        "The same seed gives the same picture; drawn and returned when absent. Image i uses seed + i. A whole number up to 2^53 - 1.",
      ),
    guidance_scale: z
      .number()
      .min(0)
      .max(50)
      .optional()
      .describe("How strongly the prompt steers; 1 is no guidance. The model's default when absent."),
    sampler: z.enum(SAMPLER_NAMES).optional().describe("The model's default when absent."),
    model: z.string().optional().describe("An id of /v1/models; the first of them when absent."),
    format: z.enum(IMAGE_FORMATS).optional().describe("png when absent, or what the Accept header asks for."),
    quality: z.int().min(1).max(100).optional().describe("Of jpeg and webp."),
    num_images: z.int().min(1).max(8).default(1),
    init_image: z
      .string()
      .optional()
      .meta({ contentEncoding: "base64" })
      .describe(
        "A PNG, JPEG or WebP file in base64 that the pictures start from. It is turned as its EXIF says, laid on white, and scaled and cut to the size asked for.",
      ),
    strength: z
      .number()
      .gt(0)
      .max(1)
      .optional()
      .describe(
        "With init_image: how much of the schedule is run. Near 0 the picture stays, 1 keeps little of it. 0.6 when absent.",
      ),
    preview_every: z
      .int()
      .min(1)
      .max(150)
      .optional()
      .describe("In a stream of events: a preview of each picture with every this many of its steps."),
  })
  .meta({ id: "Generate" });

export type GenerateBody = z.infer<typeof generateBody>;

const base64 = z.string().meta({ contentEncoding: "base64" });

/** The JSON answer of POST /generate. */
export const generateReply = z
  .object({
    image: base64.describe("The picture, or the first of them."),
    images: z.array(base64).optional().describe("All of them, when num_images is above 1."),
    format: z.enum(IMAGE_FORMATS),
    media_type: z.string(),
    width: z.int(),
    height: z.int(),
    seed: z.int(),
    model: z.string(),
    receipt,
  })
  .meta({ id: "GenerateReply", description: "The pictures in base64, and the receipt." });

export type GenerateReply = z.infer<typeof generateReply>;

/** The body as the gateway's own request; `format` is what body and Accept header agreed on. */
export function draftFromBody(
  body: GenerateBody,
  { id, format }: { id: string; format: ImageFormatName },
): ImageRequestDraft {
  return {
    id,
    format,
    model: body.model,
    prompt: body.prompt,
    negativePrompt: body.negative_prompt,
    width: body.width,
    height: body.height,
    steps: body.steps,
    guidanceScale: body.guidance_scale,
    sampler: body.sampler,
    seed: body.seed,
    numImages: body.num_images,
    quality: body.quality,
    initImage: body.init_image,
    strength: body.strength,
    previewEvery: body.preview_every,
  };
}

export function replyFromServed(served: Served): GenerateReply {
  const { request, generation } = served;
  const { pictures, receipt } = generation;
  const first = pictures[0]!;
  const images = pictures.map(({ data }) => base64Of(data));
  return {
    image: images[0]!,
    ...(images.length > 1 ? { images } : {}),
    format: request.format,
    media_type: first.mediaType,
    width: first.width,
    height: first.height,
    seed: first.seed,
    model: receipt.model,
    receipt: receiptToJson(served),
  };
}
