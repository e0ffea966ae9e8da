import type { FastifyRequest } from "fastify";
import { z } from "zod";
import { IMAGE_FORMATS } from "../image-request.ts";
import { SAMPLER_NAMES } from "../samplers.ts";
import type { Estimate } from "../tenants/estimate.ts";

/** `?dry_run=true`, on every route that makes pictures. */
export const dryRunQuery = z.strictObject({
  dry_run: z
    .enum(["true", "false"])
    .default("false")
    .describe("true: says what the request would take and cost, and makes nothing."),
});

/** The caller asks what its request would take, and for nothing to be made. */
export function isDryRun({ query }: Pick<FastifyRequest, "query">): boolean {
  return (query as { readonly dry_run?: unknown } | null)?.dry_run === "true";
}

export const estimateReply = z
  .object({
    dry_run: z.literal(true),
    request: z
      .object({
        model: z.string(),
        prompt: z.string(),
        negative_prompt: z.string(),
        width: z.int(),
        height: z.int(),
        steps: z.int(),
        guidance_scale: z.number(),
        sampler: z.enum(SAMPLER_NAMES),
        karras_sigmas: z.boolean(),
        seed: z.int().nullable().describe("null: would be drawn."),
        num_images: z.int(),
        format: z.enum(IMAGE_FORMATS),
        loras: z.array(z.object({ name: z.string(), weight: z.number() })),
      })
      .describe("With every default applied."),
    predicted: z.object({
      wait_ms: z.number().describe("Until its first step, as things are now."),
      device_seconds: z.number().describe("Of a whole device, for all of its pictures, made anew."),
    }),
    cache: z
      .object({ kept: z.int(), of: z.int() })
      .nullable()
      .describe(
        "Results at hand, of those that the request may have: the one of its seed, or without a seed any of its variants, by chance. null where none is kept.",
      ),
    cost: z.object({
      currency: z.string(),
      price_per_device_hour: z.number(),
      amount: z.number().describe("Of all of its pictures, made anew; what comes from a cache costs nothing."),
      per_image: z.number(),
    }),
  })
  .meta({ id: "Estimate", description: "What the request would take and cost. Nothing was made." });

/** What a route's 200 holds: its own answer, or with `?dry_run=true` the estimate. */
export const orEstimate = <Reply extends z.ZodType>(reply: Reply) => z.union([reply, estimateReply]);

export type EstimateReply = z.infer<typeof estimateReply>;

export function estimateToJson({ request, predicted, cache, cost }: Estimate): EstimateReply {
  return {
    dry_run: true,
    request: {
      model: request.model,
      prompt: request.prompt,
      negative_prompt: request.negativePrompt,
      width: request.width,
      height: request.height,
      steps: request.steps,
      guidance_scale: request.guidanceScale,
      sampler: request.sampler,
      karras_sigmas: request.karrasSigmas ?? false,
      seed: request.seed ?? null,
      num_images: request.numImages,
      format: request.format,
      loras: request.adapters.map(({ name, weight }) => ({ name, weight })),
    },
    predicted: { wait_ms: predicted.waitMs, device_seconds: predicted.workMs / 1000 },
    cache: cache ?? null,
    cost: {
      currency: cost.currency,
      price_per_device_hour: cost.pricePerDeviceHour,
      amount: cost.amount,
      per_image: cost.perImage,
    },
  };
}
