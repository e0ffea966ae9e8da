import { z } from "zod";
import {
  GENERATION_STATUSES,
  type GenerationRecord,
  type GenerationResult,
  hasEnded,
} from "../background/generation-record.ts";
import { STAGE_NAMES } from "../image-request.ts";
import { type Received, receipt, receiptToJson } from "./receipt.ts";

/** What is to be read of a generation in the background. */
export const generationState = z
  .object({
    id: z.string(),
    status: z
      .enum(GENERATION_STATUSES)
      .describe("queued and running become succeeded, failed or cancelled, and what is one of these stays it."),
    created_at: z.iso.datetime(),
    expires_at: z.iso.datetime().describe("When it is forgotten, pictures and all. Later once it has ended."),
    model: z.string().optional().describe("Once a worker has taken it."),
    seed: z.int().optional().describe("The first picture's, once a worker has taken it."),
    progress: z
      .object({
        stage: z.enum(STAGE_NAMES),
        steps_done: z.int().describe("Over all pictures."),
        steps_total: z.int(),
        image_index: z.int(),
      })
      .optional()
      .describe("How far it came, about twice a second."),
    images: z
      .array(
        z.object({
          url: z.string().describe("Path of the picture's bytes on any gateway."),
          media_type: z.string(),
          width: z.int(),
          height: z.int(),
          seed: z.int(),
          digest: z.string().describe("SHA-256 of the bytes."),
        }),
      )
      .optional()
      .describe("Of one that succeeded."),
    receipt: receipt.optional().describe("Of one that succeeded."),
    error: z
      .object({ code: z.string(), message: z.string(), field: z.string().optional() })
      .optional()
      .describe("Of one that failed."),
    links: z.object({ self: z.string() }),
  })
  .meta({ id: "GenerationState", description: "A generation in the background, as it is now." });

export type GenerationState = z.infer<typeof generationState>;

export const generationList = z
  .object({
    generations: z.array(generationState),
    complete: z
      .boolean()
      .describe("false: what gateways share could not be reached, and these are only this gateway's own."),
  })
  .meta({ id: "GenerationList", description: "The caller's newest, newest first." });

export function stateToJson(record: GenerationRecord): GenerationState {
  const { id, status, createdAtMs, expiresAtMs, model, seed, progress, result, error } = record;
  const self = `/v1/generations/${id}`;
  return {
    id,
    status,
    created_at: new Date(createdAtMs).toISOString(),
    expires_at: new Date(expiresAtMs).toISOString(),
    ...(model !== undefined && { model }),
    ...(seed !== undefined && { seed }),
    ...(progress && {
      progress: {
        stage: progress.stage,
        steps_done: progress.stepsDone,
        steps_total: progress.stepsTotal,
        image_index: progress.imageIndex,
      },
    }),
    ...(result && {
      images: result.pictures.map(({ mediaType, width, height, seed: own, digest }, index) => ({
        url: `${self}/images/${index}`,
        media_type: mediaType,
        width,
        height,
        seed: own,
        digest,
      })),
      receipt: receiptToJson(receivedOf(result)),
    }),
    ...(error &&
      hasEnded(record) && {
        error: { code: error.code, message: error.message, ...(error.field && { field: error.field }) },
      }),
    links: { self },
  };
}

/** What a receipt tells, of a record. */
export function receivedOf({ receipt, outcome, reduced }: GenerationResult): Received {
  return { generation: { receipt, pictures: [] }, outcome, request: { reduced } };
}
