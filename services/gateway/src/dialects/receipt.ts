import { z } from "zod";
import { CACHE_OUTCOMES, type Served } from "../generations/ports.ts";
import type { ImageRequest } from "../image-request.ts";
import { SAMPLER_NAMES } from "../samplers.ts";

const milliseconds = z.number().describe("Milliseconds, waiting included.");

/** A receipt as every JSON answer of ours shows it. */
export const receipt = z
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
    attempts: z.int().describe("Calls to workers that it took; 1 where nothing went wrong."),
    worker_ids: z.array(z.string()).optional().describe("Of those calls, in order, where there were several."),
    resumed_at_steps: z
      .array(z.int())
      .optional()
      .describe("For each picture that another worker finished from a checkpoint: the step at which it went on."),
    batch_difference: z
      .number()
      .describe(
        "By how much a prediction of the U-Net may depend on what shares its batch, as measured; 0: not at all.",
      ),
    reused_steps: z
      .int()
      .optional()
      .describe("Steps of each picture that were left out, since it began from a similar prompt's latent."),
    device_ms: z
      .number()
      .optional()
      .describe(
        "Milliseconds of a whole device that the pictures took, as its worker says; of a cached one, in its making.",
      ),
    reduced: z
      .object({ steps: z.int().optional(), sampler: z.enum(SAMPLER_NAMES).optional() })
      .optional()
      .describe(
        "Present when the system was overloaded and made less of it: the steps and the sampler that were asked for.",
      ),
    times: z.object({
      queue_ms: milliseconds,
      text_encode_ms: milliseconds,
      denoise_ms: milliseconds,
      image_decode_ms: milliseconds,
    }),
  })
  .meta({ id: "Receipt", description: "What it takes to make the same pixels again, and what it cost." });

export type ReceiptJson = z.infer<typeof receipt>;

/** As much of what was served as a receipt tells. */
export type Received = Pick<Served, "generation" | "outcome"> & { readonly request: Pick<ImageRequest, "reduced"> };

/** What a generation says of itself, and how this answer came by it. */
export function receiptToJson({ generation, outcome, request }: Received): ReceiptJson {
  const from = generation.receipt;
  const { hiresFix, times } = from;
  return {
    model: from.model,
    model_digest: from.modelDigest,
    worker_id: from.workerId,
    device: from.device,
    simulated: from.simulated,
    cache: outcome,
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
    attempts: from.attempts,
    ...(from.attempts > 1 && { worker_ids: [...from.workerIds] }),
    ...(from.resumedAtSteps.length > 0 && { resumed_at_steps: [...from.resumedAtSteps] }),
    batch_difference: from.batchDifference,
    ...(from.reusedSteps > 0 && { reused_steps: from.reusedSteps }),
    ...(from.deviceMs !== undefined && { device_ms: from.deviceMs }),
    ...(request.reduced && { reduced: request.reduced }),
    times: {
      queue_ms: times.queueMs,
      text_encode_ms: times.textEncodeMs,
      denoise_ms: times.denoiseMs,
      image_decode_ms: times.imageDecodeMs,
    },
  };
}

/**
 * The receipt for a header beside a picture's own bytes: JSON in base64url, which is ASCII whatever names it holds. The
 * prompts are left out: they may take 20 KB, and whoever asked has them. Undefined where even the rest is too long for
 * what proxies carry.
 */
export function receiptForHeader(served: Received): string | undefined {
  const { generation, outcome, request } = served;
  if (outcome !== "hit" || request.reduced !== undefined) return encodeReceipt(served);
  if (!ofHits.has(generation)) ofHits.set(generation, encodeReceipt(served));
  return ofHits.get(generation);
}

/** A result of the cache is asked for over and over, and its receipt is always the same. */
const ofHits = new WeakMap<Served["generation"], string | undefined>();

function encodeReceipt(served: Received): string | undefined {
  const { prompt: _prompt, negative_prompt: _negativePrompt, ...rest } = receiptToJson(served);
  const text = Buffer.from(JSON.stringify(rest)).toString("base64url");
  return text.length <= RECEIPT_HEADER_BYTES_MAX ? text : undefined;
}

/** Half of the 8 KB that common proxies allow for all headers together. */
export const RECEIPT_HEADER_BYTES_MAX = 4 * 1024;
