import { type Clock, ServingError } from "@atelier/core";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { GatewayApp } from "../app.ts";
import {
  asBuffer,
  draftFromBody,
  type GenerateBody,
  generateBody,
  generateReply,
  replyFromServed,
} from "../dialects/generate.ts";
import { generateEvent } from "../dialects/generate-events.ts";
import type { Generations } from "../generations/generations.ts";
import { chooseMediaType } from "../http/accept.ts";
import { type ErrorReply, HttpRefusal } from "../http/error-reply.ts";
import { EVENT_STREAM_TYPE } from "../http/event-stream.ts";
import { contextOf, describeServed } from "../http/generation-edge.ts";
import { errorResponses, sentAsBytes, sentAsStream } from "../http/openapi.ts";
import { type GenerationEvent, IMAGE_FORMATS, type ImageFormatName, MEDIA_TYPES } from "../image-request.ts";
import { sendEvents } from "./generate-events.ts";

export interface GenerateRouteOptions {
  readonly generations: Generations;
  readonly clock: Clock;
  readonly requestTimeoutMs: number;
  /** Notes a failure in the log and the counts, and gives the answer to it. */
  readonly noteFailure: (thrown: unknown, request: FastifyRequest, reply: FastifyReply) => ErrorReply;
}

/** POST /generate: parse, have it made, answer. */
export function generateRoute(app: GatewayApp, options: GenerateRouteOptions): void {
  const { generations, clock, noteFailure } = options;

  app.post("/generate", { schema }, async (request, reply) => {
    const { kind, format } = chooseReply(request.headers.accept, request.body);
    if (kind !== "events") checkNoPreviews(request.body);
    const draft = draftFromBody(request.body, { id: request.id, format });
    const context = contextOf(request, reply, options);

    if (kind === "events") {
      const fail = (thrown: unknown) => noteFailure(thrown, request, reply).body;
      const generate = (onEvent: (event: GenerationEvent) => void) => generations.run(draft, { ...context, onEvent });
      return sendEvents(reply, { clock, id: request.id, generate, fail });
    }
    const served = await generations.run(draft, context);
    describeServed(reply, served);
    const [first] = served.generation.pictures;
    if (kind === "picture") return reply.type(first!.mediaType).send(asBuffer(first!.data));
    return reply.type("application/json; charset=utf-8").send(replyFromServed(served));
  });
}

const JSON_TYPE = "application/json";

/**
 * JSON, or the picture's own bytes or the events of its making when the Accept header prefers those; and the picture's
 * format.
 *
 * @throws HttpRefusal 406 when the header rules out all that there is, ServingError INVALID_REQUEST when several
 * pictures were to fit in one image file.
 */
export function chooseReply(
  accept: string | undefined,
  body: Pick<GenerateBody, "format" | "num_images">,
): { kind: "json" | "picture" | "events"; format: ImageFormatName } {
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

function checkNoPreviews({ preview_every: every }: GenerateBody): void {
  if (every === undefined) return;
  const message = `preview_every is ${every}, but previews come in a stream of events only (accept ${EVENT_STREAM_TYPE})`;
  throw new ServingError("INVALID_REQUEST", message, { field: "preview_every" });
}

const schema = {
  operationId: "generate",
  summary: "Make a picture from a prompt, or from another picture and a prompt",
  description:
    "Answers with JSON, or with the bytes of the picture when the Accept header prefers image/png, image/jpeg, image/webp or image/*, " +
    "or with server-sent events when it prefers text/event-stream: those begin once a worker has accepted the request, and what fails before is an ordinary error. " +
    "Header x-atelier-seed holds the first picture's seed; x-atelier-simulated is true when no model ran (an event stream says so in its receipt only). Closing the connection cancels.",
  body: generateBody,
  response: {
    200: {
      description: "The picture.",
      content: {
        [JSON_TYPE]: { schema: generateReply },
        "image/png": { schema: sentAsBytes },
        "image/jpeg": { schema: sentAsBytes },
        "image/webp": { schema: sentAsBytes },
        [EVENT_STREAM_TYPE]: { schema: sentAsStream(generateEvent) },
      },
    },
    ...errorResponses(400, 401, 403, 404, 406, 413, 415, 429, 500, 502, 503, 504, 507),
  },
};
