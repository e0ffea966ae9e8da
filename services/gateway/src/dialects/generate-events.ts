import { errorBody } from "@atelier/http";
import { z } from "zod";
import { asBuffer } from "../as-buffer.ts";
import { type GenerationEvent, type Preview, STAGE_NAMES, type StageProgress } from "../image-request.ts";
import { generateReply } from "./generate.ts";

const acceptedData = z
  .object({
    request_id: z.string(),
    seed: z.int(),
    model: z.string(),
    steps_total: z.int().describe("Over all pictures and both phases: what steps_done counts up to."),
  })
  .meta({ id: "AcceptedEvent", description: "A worker has taken the request. First, once." });

const queuedData = z.object({ request_id: z.string() }).meta({
  id: "QueuedEvent",
  description: "No worker has taken the request yet. First where it comes, once.",
});

const progressData = z
  .object({
    stage: z.enum(STAGE_NAMES),
    steps_done: z.int().describe("Over all pictures."),
    steps_total: z.int(),
    image_index: z.int().describe("The picture that got on, from 0."),
  })
  .meta({ id: "ProgressEvent", description: "About 10 a second at most, fewer to a slow reader." });

const previewData = z
  .object({
    image_index: z.int(),
    steps_done: z.int().describe("Over all pictures."),
    steps_total: z.int(),
    image: z
      .string()
      .meta({ contentEncoding: "base64" })
      .describe("A PNG of an eighth of the picture's size, at most 128 pixels a side."),
  })
  .meta({
    id: "PreviewEvent",
    description: "A picture on its way, when preview_every asked for it. Fewer to a slow reader.",
  });

type Accepted = Extract<GenerationEvent, { type: "accepted" }>;

export type QueuedData = z.infer<typeof queuedData>;
export type AcceptedData = z.infer<typeof acceptedData>;
export type ProgressData = z.infer<typeof progressData>;
export type PreviewData = z.infer<typeof previewData>;

/** The events that every dialect with our own names has on the way. */
export const wayEvents = [
  z.object({ event: z.literal("accepted"), data: acceptedData }),
  z.object({ event: z.literal("progress"), data: progressData }),
  z.object({ event: z.literal("preview"), data: previewData }),
] as const;

export const errorEvent = z.object({ event: z.literal("error"), data: errorBody });

export const queuedEvent = z.object({ event: z.literal("queued"), data: queuedData });

/** One event of the stream: its name, and its data parsed. */
export const generateEvent = z
  .discriminatedUnion("event", [
    ...wayEvents,
    z.object({ event: z.literal("completed"), data: generateReply }),
    errorEvent,
  ])
  .meta({
    id: "GenerateEvent",
    description:
      "Each event of the stream has a name (`event:`) and JSON on one line (`data:`). In order: accepted, any number of progress and preview, " +
      "then completed (the JSON answer) or error (the error body). Lines that begin with a colon keep the connection alive.",
  });

export function queuedToJson(id: string): QueuedData {
  return { request_id: id };
}

export function acceptedToJson(id: string, { seed, model, stepsTotal }: Accepted): AcceptedData {
  return { request_id: id, seed, model, steps_total: stepsTotal };
}

export function progressToJson({ stage, stepsDone, stepsTotal, imageIndex }: StageProgress): ProgressData {
  return { stage, steps_done: stepsDone, steps_total: stepsTotal, image_index: imageIndex };
}

export function previewToJson({ imageIndex, stepsDone, stepsTotal, data }: Preview): PreviewData {
  return {
    image_index: imageIndex,
    steps_done: stepsDone,
    steps_total: stepsTotal,
    image: asBuffer(data).toString("base64"),
  };
}
