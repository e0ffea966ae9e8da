import { z } from "zod";
import { asBuffer } from "../as-buffer.ts";
import type { Served } from "../generations/ports.ts";
import { base64Of } from "../http/pictures-json.ts";
import type { Preview } from "../image-request.ts";
import { openAiError } from "./openai-errors.ts";
import { lookOf, openAiUsage, pictureLook, usageOf } from "./openai-images.ts";
import { receipt, receiptToJson } from "./receipt.ts";

export type OpenAiEventKind = "image_generation" | "image_edit";

const partial = {
  b64_json: z.string().meta({ contentEncoding: "base64" }).describe("A PNG of at most 128 pixels a side."),
  partial_image_index: z.int().describe("From 0, of its picture."),
  image_index: z.int().optional().describe("Which picture, from 0, where several were asked for."),
  created_at: z.int(),
  ...pictureLook,
};

const completed = {
  b64_json: z.string().meta({ contentEncoding: "base64" }),
  image_index: partial.image_index,
  created_at: z.int(),
  ...pictureLook,
  usage: openAiUsage.optional().describe("With the last picture of a generation, for all of its pictures."),
  ignored: z.array(z.string()).optional(),
  receipt: receipt.optional().describe("With the last picture of a generation."),
};

/** One event of the stream, parsed; its name is its type. */
export const openAiEvent = z
  .discriminatedUnion("type", [
    z.object({ type: z.literal("image_generation.partial_image"), ...partial }),
    z.object({ type: z.literal("image_generation.completed"), ...completed }),
    z.object({ type: z.literal("image_edit.partial_image"), ...partial }),
    z.object({ type: z.literal("image_edit.completed"), ...completed }),
    z.object({ type: z.literal("error"), ...openAiError.shape }),
  ])
  .meta({
    id: "OpenAiEvent",
    description:
      "Each event has its type as its name (`event:`) and JSON on one line (`data:`): partial_image as often as asked for, completed once for each picture; " +
      "or error, which is the last. Lines that begin with a colon keep the connection alive.",
  });

export type OpenAiEvent = z.infer<typeof openAiEvent>;
export type OpenAiPartial = Extract<OpenAiEvent, { partial_image_index: number }>;

/** Where an event belongs. */
export interface EventPlace {
  readonly kind: OpenAiEventKind;
  readonly createdAt: number;
  /** Of the picture among all; undefined where there is one only. */
  readonly imageIndex: number | undefined;
}

type Look = ReturnType<typeof lookOf>;

export function partialToEvent(
  { data }: Pick<Preview, "data">,
  { kind, createdAt, imageIndex, index, look }: EventPlace & { readonly index: number; readonly look: Look },
): OpenAiEvent {
  return {
    type: `${kind}.partial_image`,
    b64_json: asBuffer(data).toString("base64"),
    partial_image_index: index,
    ...(imageIndex !== undefined && { image_index: imageIndex }),
    created_at: createdAt,
    ...look,
  };
}

/** One for each picture of `served`; what is true of all of them together comes with the last. */
export function servedToEvents(
  served: Served,
  place: (picture: number) => EventPlace,
  ignored: readonly string[],
): OpenAiEvent[] {
  const { pictures } = served.generation;
  return pictures.map(({ data }, i): OpenAiEvent => {
    const { kind, createdAt, imageIndex } = place(i);
    return {
      type: `${kind}.completed`,
      b64_json: base64Of(data),
      ...(imageIndex !== undefined && { image_index: imageIndex }),
      created_at: createdAt,
      ...lookOf(served),
      ...(ignored.length > 0 && { ignored: [...ignored] }),
      ...(i === pictures.length - 1 && { usage: usageOf([served]), receipt: receiptToJson(served) }),
    };
  });
}

/**
 * Chooses which of a picture's previews are its partial images: `count` of them, spread evenly over its steps. A worker
 * gives one every so many steps, which divides them only nearly, and runs more steps than were asked for where it refines
 * a large picture.
 */
export class PartialImages {
  readonly #count: number;
  readonly #sent = new Map<number, number>();

  constructor(count: number) {
    this.#count = count;
  }

  /** Steps between previews; undefined where there are none. `stepsToRun` of each picture. */
  previewEvery(stepsToRun: number): number | undefined {
    return this.#count === 0 ? undefined : Math.max(1, Math.floor(stepsToRun / (this.#count + 1)));
  }

  /** The number of the partial image that the preview is, from 0; undefined where it is none. */
  indexOf({ imageIndex, stepsDone, stepsTotal }: Omit<Preview, "data">): number | undefined {
    const sent = this.#sent.get(imageIndex) ?? 0;
    const due = Math.round((stepsDone / stepsTotal) * (this.#count + 1));
    if (sent >= this.#count || due <= sent) return undefined;
    this.#sent.set(imageIndex, sent + 1);
    return sent;
  }
}
