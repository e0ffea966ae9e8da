import { ServingError } from "@atelier/core";
import { chooseMediaType, EVENT_STREAM_TYPE, HttpRefusal } from "@atelier/http";
import { IMAGE_FORMATS, type ImageFormatName, MEDIA_TYPES } from "../image-request.ts";

export const JSON_TYPE = "application/json";

export const REPLY_KINDS = ["json", "picture", "events"] as const;
export type ReplyKind = (typeof REPLY_KINDS)[number];

/** What of a request decides which kinds of answer it can have. */
export interface ReplyWishes {
  readonly format?: ImageFormatName | undefined;
  readonly num_images: number;
  readonly preview_every?: number | undefined;
}

/**
 * JSON, or the picture's own bytes or the events of its making when the Accept header prefers those; and the picture's
 * format.
 *
 * @throws HttpRefusal 406 when the header rules out all that there is, ServingError INVALID_REQUEST when several
 * pictures were to fit in one image file or previews were asked for without a stream to carry them.
 */
export function chooseReply(
  accept: string | undefined,
  body: ReplyWishes,
): { kind: ReplyKind; format: ImageFormatName } {
  const chosen = chooseKind(accept, body);
  if (chosen.kind !== "events") checkNoPreviews(body);
  return chosen;
}

function chooseKind(accept: string | undefined, body: ReplyWishes): { kind: ReplyKind; format: ImageFormatName } {
  const formats = body.format === undefined ? IMAGE_FORMATS : [body.format];
  const offers = [JSON_TYPE, ...formats.map((format) => MEDIA_TYPES[format]), EVENT_STREAM_TYPE];
  const chosen = chooseMediaType(accept, offers);
  if (chosen === undefined) {
    throw new HttpRefusal(406, `the Accept header leaves nothing that this request can have: ${offers.join(", ")}`);
  }
  const format = formats.find((candidate) => MEDIA_TYPES[candidate] === chosen);
  if (format === undefined) {
    return { kind: chosen === EVENT_STREAM_TYPE ? "events" : "json", format: body.format ?? "png" };
  }
  if (body.num_images > 1) {
    const message = `num_images is ${body.num_images}; it must be 1 for ${chosen}, which holds one picture (accept ${JSON_TYPE} for more)`;
    throw new ServingError("INVALID_REQUEST", message, { field: "num_images" });
  }
  return { kind: "picture", format };
}

/** @throws ServingError INVALID_REQUEST. */
export function checkNoPreviews({ preview_every: every }: ReplyWishes): void {
  if (every === undefined) return;
  const message = `preview_every is ${every}, but previews come in a stream of events only (accept ${EVENT_STREAM_TYPE})`;
  throw new ServingError("INVALID_REQUEST", message, { field: "preview_every" });
}
