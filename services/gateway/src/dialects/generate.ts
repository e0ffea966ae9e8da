import { z } from "zod";
import { CACHE_OUTCOMES, type CacheOutcome, type Served } from "../generations/ports.ts";
import {
  type GenerationReceipt,
  IMAGE_FORMATS,
  type ImageFormatName,
  type ImageRequestDraft,
} from "../image-request.ts";
import { SAMPLER_NAMES } from "../samplers.ts";

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

const milliseconds = z.number().describe("Milliseconds, waiting included.");

const receipt = z
  .object({
    model: z.string(),
    model_digest: z.string(),
    worker_id: z.string(),
    device: z.string(),
    simulated: z.boolean().describe("True when no model ran and the picture is a stand-in."),
    cache: z
      .enum(CACHE_OUTCOMES)
      .describe(
        "hit: made before; shared: made at this moment for another request; approximate: begun from a similar prompt's latent; miss: made anew; bypass: made anew, and no cache was asked.",
      ),
    prompt: z.string(),
    negative_prompt: z.string(),
    width: z.int(),
    height: z.int(),
    steps: z.int(),
    guidance_scale: z.number(),
    sampler: z.enum(SAMPLER_NAMES),
    karras_sigmas: z.boolean(),
    seed: z.int(),
    num_images: z.int(),
    strength: z.number().optional().describe("Present when the pictures started from another."),
    init_image_digest: z.string().optional().describe("SHA-256 of the file that they started from."),
    prompt_chunks: z.int().describe("Chunks of 77 tokens that the prompts took."),
    hires_fix: z
      .object({ native_width: z.int(), native_height: z.int(), strength: z.number(), upscale: z.string() })
      .optional()
      .describe("Present when the picture was made at the model's native size, upscaled and refined."),
    tiled_decode: z
      .boolean()
      .optional()
      .describe("True when the picture was decoded in overlapping tiles, which may differ a little in tone."),
    embeddings_cached: z
      .boolean()
      .describe("True when the prompts were embedded before and the text encoder did not run."),
    preemptions: z.int().describe("How often the pictures gave way to more urgent work, together."),
    batch_difference: z
      .number()
      .describe(
        "By how much a prediction of the U-Net may depend on what shares its batch, as measured; 0: not at all.",
      ),
    times: z.object({
      queue_ms: milliseconds,
      text_encode_ms: milliseconds,
      denoise_ms: milliseconds,
      image_decode_ms: milliseconds,
    }),
  })
  .meta({ id: "Receipt", description: "What it takes to make the same pixels again, and what it cost." });

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

export function replyFromServed({ request, generation, outcome }: Served): GenerateReply {
  const { pictures, receipt } = generation;
  const first = pictures[0]!;
  const images = pictures.map(({ data }) => asBuffer(data).toString("base64"));
  return {
    image: images[0]!,
    ...(images.length > 1 ? { images } : {}),
    format: request.format,
    media_type: first.mediaType,
    width: first.width,
    height: first.height,
    seed: first.seed,
    model: receipt.model,
    receipt: receiptToJson(receipt, outcome),
  };
}

/** The same bytes as a Buffer, not copied. */
export function asBuffer(data: Uint8Array): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

function receiptToJson(from: GenerationReceipt, cache: CacheOutcome): z.infer<typeof receipt> {
  const { hiresFix, times } = from;
  return {
    model: from.model,
    model_digest: from.modelDigest,
    worker_id: from.workerId,
    device: from.device,
    simulated: from.simulated,
    cache,
    prompt: from.prompt,
    negative_prompt: from.negativePrompt,
    width: from.width,
    height: from.height,
    steps: from.steps,
    guidance_scale: from.guidanceScale,
    sampler: from.sampler,
    karras_sigmas: from.karrasSigmas,
    seed: from.seed,
    num_images: from.numImages,
    ...(from.strength !== undefined && { strength: from.strength }),
    ...(from.initImageDigest !== undefined && { init_image_digest: from.initImageDigest }),
    prompt_chunks: from.promptChunks,
    ...(hiresFix && {
      hires_fix: {
        native_width: hiresFix.nativeWidth,
        native_height: hiresFix.nativeHeight,
        strength: hiresFix.strength,
        upscale: hiresFix.upscale,
      },
    }),
    ...(from.tiledDecode && { tiled_decode: true }),
    embeddings_cached: from.embeddingsCached,
    preemptions: from.preemptions,
    batch_difference: from.batchDifference,
    times: {
      queue_ms: times.queueMs,
      text_encode_ms: times.textEncodeMs,
      denoise_ms: times.denoiseMs,
      image_decode_ms: times.imageDecodeMs,
    },
  };
}
