import { type Clock, Deadline, ServingError } from "@atelier/core";
import type { FastifyReply } from "fastify";
import type { GatewayApp } from "../app.ts";
import { completeRequest } from "../complete-request.ts";
import {
  asBuffer,
  draftFromBody,
  type GenerateBody,
  generateBody,
  generateReply,
  replyFromGeneration,
} from "../dialects/generate.ts";
import type { Dispatcher } from "../dispatch.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { chooseMediaType } from "../http/accept.ts";
import { HttpRefusal } from "../http/error-reply.ts";
import { errorResponses, sentAsBytes } from "../http/openapi.ts";
import { type Generation, IMAGE_FORMATS, type ImageFormatName, MEDIA_TYPES } from "../image-request.ts";
import type { InFlight } from "../in-flight.ts";
import type { GatewayMetrics } from "../metrics.ts";

export interface GenerateRouteOptions {
  readonly fleet: Fleet;
  readonly dispatcher: Dispatcher;
  readonly inFlight: InFlight;
  readonly metrics: GatewayMetrics;
  readonly clock: Clock;
  readonly requestTimeoutMs: number;
}

/** POST /generate: validate -> admit -> dispatch -> respond. */
export function generateRoute(app: GatewayApp, options: GenerateRouteOptions): void {
  const { fleet, dispatcher, inFlight, metrics, clock, requestTimeoutMs } = options;

  app.post("/generate", { schema }, async (request, reply) => {
    const deadline = Deadline.after(clock, requestTimeoutMs);
    const { raw, format } = chooseReply(request.headers.accept, request.body);
    const image = completeRequest(draftFromBody(request.body, { id: request.id, format }), fleet.views());

    const ticket = inFlight.enter();
    onCallerGone(reply, () => ticket.abort(new ServingError("CANCELLED", "the caller went away")));
    const generation = await dispatcher.generate(image, { deadline, signal: ticket.signal }).finally(ticket.leave);

    const { receipt, pictures } = generation;
    metrics.images.inc({ model: receipt.model, format, simulated: String(receipt.simulated) }, pictures.length);
    describeInHeaders(reply, generation);
    if (raw) return reply.type(pictures[0]!.mediaType).send(asBuffer(pictures[0]!.data));
    return reply.type("application/json; charset=utf-8").send(replyFromGeneration(generation, format));
  });
}

const JSON_TYPE = "application/json";

/**
 * JSON, or the picture's own bytes when the Accept header prefers an image; and in which format.
 *
 * @throws HttpRefusal 406 when the header rules out all that there is, ServingError INVALID_REQUEST when several
 * pictures were to fit in one image file.
 */
export function chooseReply(
  accept: string | undefined,
  body: Pick<GenerateBody, "format" | "num_images">,
): { raw: boolean; format: ImageFormatName } {
  const formats = body.format === undefined ? IMAGE_FORMATS : [body.format];
  const offers = [JSON_TYPE, ...formats.map((format) => MEDIA_TYPES[format])];
  const chosen = chooseMediaType(accept, offers);
  if (chosen === undefined) {
    throw new HttpRefusal(406, `the Accept header leaves nothing that this request can have: ${offers.join(", ")}`);
  }
  const format = formats.find((candidate) => MEDIA_TYPES[candidate] === chosen);
  if (format === undefined) return { raw: false, format: body.format ?? "png" };
  if (body.num_images > 1) {
    const message = `num_images is ${body.num_images}; it must be 1 for ${chosen}, which holds one picture (accept ${JSON_TYPE} for more)`;
    throw new ServingError("INVALID_REQUEST", message, { field: "num_images" });
  }
  return { raw: true, format };
}

function onCallerGone(reply: FastifyReply, run: () => void): void {
  // It may have left while its body was read.
  if (reply.raw.closed) run();
  else reply.raw.once("close", run);
}

/** For callers who took the bytes and have no JSON to look into; the same on both kinds of answer. */
function describeInHeaders(reply: FastifyReply, { pictures, receipt }: Generation): void {
  reply.header("x-atelier-seed", String(pictures[0]!.seed));
  if (receipt.simulated) reply.header("x-atelier-simulated", "true");
}

const schema = {
  operationId: "generate",
  summary: "Make a picture from a prompt",
  description:
    "Answers with JSON, or with the bytes of the picture when the Accept header prefers image/png, image/jpeg, image/webp or image/*. " +
    "Header x-atelier-seed holds the first picture's seed; x-atelier-simulated is true when no model ran. Closing the connection cancels.",
  body: generateBody,
  response: {
    200: {
      description: "The picture.",
      content: {
        [JSON_TYPE]: { schema: generateReply },
        "image/png": { schema: sentAsBytes },
        "image/jpeg": { schema: sentAsBytes },
        "image/webp": { schema: sentAsBytes },
      },
    },
    ...errorResponses(400, 404, 406, 413, 415, 500, 502, 503, 504, 507),
  },
};
