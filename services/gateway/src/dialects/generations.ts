import { z } from "zod";
import { PRIORITY_CLASSES } from "../caller.ts";
import type { CacheUse, Served } from "../generations/ports.ts";
import { base64Of } from "../http/pictures-json.ts";
import type { ImageFormatName, ImageRequestDraft } from "../image-request.ts";
import { draftFromBody, generateBody } from "./generate.ts";
import { receipt, receiptToJson } from "./receipt.ts";

const CACHE_MODES = ["default", "refresh", "off", "approximate"] as const;
export type CacheMode = (typeof CACHE_MODES)[number];

/** More than a style and a few touches on top do nobody any good. */
const LORAS_MAX = 8;

const lora = z.strictObject({
  name: z.string().min(1).max(128).describe("As it is registered."),
  weight: z.number().min(-2).max(2).default(1).describe("1 acts as it was trained, 0 not at all."),
});

/** The body of POST /v1/generations: that of POST /generate, and what only our own API can say. */
export const generationBody = z
  .strictObject({
    ...generateBody.shape,
    loras: z
      .array(lora)
      .max(LORAS_MAX)
      .default([])
      .describe(`a list of at most ${LORAS_MAX} adapters, each {"name", "weight"}, which act together`),
    karras_sigmas: z
      .boolean()
      .default(false)
      .describe(
        "Noise levels spaced as Karras et al. do, where the sampler can; otherwise as the model's own schedule.",
      ),
    cache: z
      .enum(CACHE_MODES)
      .optional()
      .describe(
        "default: an earlier answer will do; refresh: made anew, and kept for others; off: made anew, and not kept; approximate: may begin from a similar prompt's latent, which changes the picture. When absent, the Cache-Control header's no-cache and no-store count.",
      ),
    priority: z
      .enum(PRIORITY_CLASSES)
      .optional()
      .describe("Not above the key's own, which it is when absent. More urgent ones go first at every step."),
    deadline_ms: z
      .int()
      .min(1)
      .max(3_600_000)
      .optional()
      .describe("Milliseconds from now after which nobody waits for the pictures. The gateway has a limit of its own."),
  })
  .meta({ id: "Generation" });

export type GenerationBody = z.infer<typeof generationBody>;

const CACHE_USES: Record<CacheMode, CacheUse> = {
  default: { read: true, store: true, approximate: false },
  refresh: { read: false, store: true, approximate: false },
  off: { read: false, store: false, approximate: false },
  approximate: { read: true, store: true, approximate: true },
};

/** What the body says of a request beside what it draws. */
export function limitsFromBody({ cache, priority, deadline_ms: deadlineMs }: GenerationBody) {
  return { priority, deadlineMs, cache: cache && CACHE_USES[cache] };
}

/** The body as the gateway's own request; `format` is what body and Accept header agreed on. */
export function draftFromGeneration(
  body: GenerationBody,
  names: { id: string; format: ImageFormatName },
): ImageRequestDraft {
  return { ...draftFromBody(body, names), adapters: body.loras, karrasSigmas: body.karras_sigmas };
}

/** The answer to POST /v1/generations that waits for its pictures. */
export const generationReply = z
  .object({
    id: z.string(),
    status: z.literal("succeeded"),
    images: z.array(
      z.object({
        b64_json: z.string().meta({ contentEncoding: "base64" }),
        media_type: z.string(),
        width: z.int(),
        height: z.int(),
        seed: z.int(),
      }),
    ),
    receipt,
  })
  .meta({ id: "GenerationReply", description: "The pictures in base64, and the receipt." });

export type GenerationReply = z.infer<typeof generationReply>;

export function generationToJson(id: string, served: Served): GenerationReply {
  return {
    id,
    status: "succeeded",
    images: served.generation.pictures.map(({ data, mediaType, width, height, seed }) => ({
      b64_json: base64Of(data),
      media_type: mediaType,
      width,
      height,
      seed,
    })),
    receipt: receiptToJson(served),
  };
}
