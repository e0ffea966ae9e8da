import { ServingError } from "@atelier/core";
import { z } from "zod";
import type { Served } from "../generations/ports.ts";
import { base64Of } from "../http/pictures-json.ts";
import { IMAGE_FORMATS, type ImageFormatName, type ImageRequest, type ImageRequestDraft } from "../image-request.ts";
import { SAMPLER_NAMES } from "../samplers.ts";
import { wasMade } from "../tenants/tariff.ts";
import { generationBody } from "./generations.ts";
import { receipt, receiptToJson } from "./receipt.ts";

const PICTURES_MAX = 10;

/** Fields that change no picture here. They are read and named in the answer, so that nobody takes them for heeded. */
const IGNORED = ["quality", "style", "moderation", "complexity", "user", "safety_identifier"] as const;

const size = z
  .string()
  .regex(/^(?:auto|\d{1,5}x\d{1,5})$/)
  .describe('"auto", which is the model\'s own, or WIDTHxHEIGHT in pixels, such as "512x512"')
  .nullish();

/** What both routes read. OpenAI's clients send null for what they leave open. */
const common = {
  prompt: z.string().describe("What to draw, in any language that the model knows."),
  model: z.string().nullish().describe("An id of /v1/models or another name of one; the first of them when absent."),
  n: z.int().min(1).max(PICTURES_MAX).nullish().describe("How many pictures."),
  size,
  response_format: z.enum(["b64_json"]).nullish().describe("No URLs are given out: they would lead past the keys."),
  output_format: z.enum(IMAGE_FORMATS).nullish().describe("png when absent."),
  output_compression: z
    .int()
    .min(0)
    .max(100)
    .nullish()
    .describe("The encoder's quality, of jpeg and webp; 100 is best."),
  background: z.enum(["auto", "opaque"]).nullish().describe("Pictures are opaque."),
  stream: z.boolean().nullish().describe("Answers with server-sent events."),
  partial_images: z.int().min(0).max(3).nullish().describe("In a stream: previews of each picture, small PNGs."),
  quality: z.string().max(64).nullish().describe("Ignored: see steps."),
  complexity: z.string().max(64).nullish().describe("Ignored."),
  user: z.string().max(1_000).nullish().describe("Ignored."),
  safety_identifier: z.string().max(1_000).nullish().describe("Ignored."),
  negative_prompt: z.string().nullish().describe("Atelier's own: what to steer away from."),
  seed: z
    .int()
    .min(0)
    .nullish()
    .describe("Atelier's own: the same seed gives the same picture; picture i uses seed + i."),
  steps: z.int().min(1).max(150).nullish().describe("Atelier's own: denoising steps; the model's default when absent."),
  guidance_scale: z.number().min(0).max(50).nullish().describe("Atelier's own: how strongly the prompt steers."),
  sampler: z.enum(SAMPLER_NAMES).nullish().describe("Atelier's own; the model's default when absent."),
  loras: generationBody.shape.loras
    .unwrap()
    .nullish()
    .describe(generationBody.shape.loras.description ?? ""),
};

/** The body of POST /v1/images/generations. */
export const openAiGenerationBody = z
  .strictObject({
    ...common,
    style: z.string().max(64).nullish().describe("Ignored."),
    moderation: z.string().max(64).nullish().describe("Ignored."),
  })
  .meta({ id: "OpenAiImageGeneration" });

/** How much of the schedule is run on the picture; more keeps less of it. */
const STRENGTHS = { low: 0.6, high: 0.4 } as const;

/** The form of POST /v1/images/edits, its texts read as what they stand for, its file in base64. */
export const openAiEditBody = z
  .strictObject({
    ...common,
    image: z.string().meta({ format: "binary" }).describe("A PNG, JPEG or WebP file that the pictures start from."),
    input_fidelity: z.enum(["low", "high"]).nullish().describe("low is strength 0.6, high is 0.4."),
    strength: z.number().gt(0).max(1).nullish().describe("Atelier's own: how much of the schedule is run."),
    moderation: z.string().max(64).nullish().describe("Ignored."),
  })
  .meta({ id: "OpenAiImageEdit" });

export type OpenAiGenerationBody = z.infer<typeof openAiGenerationBody>;
export type OpenAiEditBody = z.infer<typeof openAiEditBody>;
export type OpenAiImagesBody = OpenAiGenerationBody | OpenAiEditBody;

/** The body as the gateway's own request, for all of its pictures. */
export function draftFromOpenAi(body: OpenAiImagesBody, id: string): ImageRequestDraft {
  const format = body.output_format ?? "png";
  const [, width, height] = /^(\d+)x(\d+)$/.exec(body.size ?? "") ?? [];
  return {
    id,
    format,
    model: body.model ?? undefined,
    prompt: body.prompt,
    negativePrompt: body.negative_prompt ?? "",
    width: width === undefined ? undefined : Number(width),
    height: height === undefined ? undefined : Number(height),
    steps: body.steps ?? undefined,
    guidanceScale: body.guidance_scale ?? undefined,
    sampler: body.sampler ?? undefined,
    seed: body.seed ?? undefined,
    numImages: body.n ?? 1,
    quality: encoderQuality(format, body.output_compression ?? undefined),
    adapters: body.loras ?? [],
    ...("image" in body && {
      initImage: body.image,
      strength: body.strength ?? STRENGTHS[body.input_fidelity ?? "low"],
    }),
  };
}

/** OpenAI takes 100 with png, which is what png is. @throws ServingError INVALID_REQUEST for less of it, as there. */
function encoderQuality(format: ImageFormatName, compression: number | undefined): number | undefined {
  if (compression === undefined || (format === "png" && compression === 100)) return undefined;
  if (format !== "png") return Math.max(1, compression);
  const message = `output_compression is ${compression}, but png loses nothing; it applies to jpeg and webp`;
  throw new ServingError("INVALID_REQUEST", message, { field: "output_compression" });
}

/** The fields of the body that change nothing, as the caller spelt them. */
export function ignoredFields(body: OpenAiImagesBody): string[] {
  const given = body as Readonly<Record<string, unknown>>;
  const ignored: string[] = IGNORED.filter((field) => given[field] != null);
  return body.stream !== true && body.partial_images ? [...ignored, "partial_images"] : ignored;
}

/** Nothing here is counted in tokens, and a made-up number would be billed by whoever reads it. */
const usage = z
  .object({
    input_tokens: z.literal(0),
    output_tokens: z.literal(0),
    total_tokens: z.literal(0),
    input_tokens_details: z.object({ text_tokens: z.literal(0), image_tokens: z.literal(0) }),
    device_ms: z.number().optional().describe("Of a whole device. What we count instead."),
  })
  .meta({ id: "OpenAiUsage", description: "No tokens are counted here." });

/** What an answer says of how its pictures are; `auto`, since a quality is not chosen here. */
export const pictureLook = {
  size: z.string(),
  quality: z.literal("auto"),
  background: z.literal("opaque"),
  output_format: z.enum(IMAGE_FORMATS),
};

export const openAiUsage = usage;

/** The answer that is not a stream. */
export const openAiImagesReply = z
  .object({
    created: z.int().describe("Seconds since 1970."),
    data: z.array(z.object({ b64_json: z.string().meta({ contentEncoding: "base64" }) })),
    ...pictureLook,
    usage,
    ignored: z.array(z.string()).optional().describe("Fields of the request that changed nothing."),
    receipts: z.array(receipt).describe("One for each generation that it took."),
  })
  .meta({ id: "OpenAiImages", description: "The pictures in base64, and the receipts." });

export type OpenAiImagesReply = z.infer<typeof openAiImagesReply>;

export function repliesToOpenAi(
  all: readonly Served[],
  { created, ignored }: { readonly created: number; readonly ignored: readonly string[] },
): OpenAiImagesReply {
  return {
    created,
    data: all.flatMap(({ generation }) => generation.pictures.map(({ data }) => ({ b64_json: base64Of(data) }))),
    ...lookOf(all[0]!),
    usage: usageOf(all),
    ...(ignored.length > 0 && { ignored: [...ignored] }),
    receipts: all.map(receiptToJson),
  };
}

export function lookOf({ request }: { readonly request: Pick<ImageRequest, "width" | "height" | "format"> }) {
  const { width, height, format } = request;
  return { size: `${width}x${height}`, quality: "auto", background: "opaque", output_format: format } as const;
}

/** What was made before cost no device anything now. */
export function usageOf(all: readonly Pick<Served, "generation" | "outcome">[]): z.infer<typeof usage> {
  const made = all.filter(wasMade);
  const known = made.every(({ generation }) => generation.receipt.deviceMs !== undefined);
  const deviceMs = made.reduce((sum, { generation }) => sum + (generation.receipt.deviceMs ?? 0), 0);
  return {
    input_tokens: 0,
    output_tokens: 0,
    total_tokens: 0,
    input_tokens_details: { text_tokens: 0, image_tokens: 0 },
    ...(known && { device_ms: deviceMs }),
  };
}
