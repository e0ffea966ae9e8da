import { EVENT_STREAM_TYPE, errorResponses, sentAsBytes, sentAsStream } from "@atelier/http";
import type { GatewayApp } from "../app.ts";
import { dryRunQuery, isDryRun, orEstimate } from "../dialects/estimate.ts";
import { draftFromBody, generateBody, generateReply, replyFromServed } from "../dialects/generate.ts";
import { generateEvent } from "../dialects/generate-events.ts";
import { chooseReply, JSON_TYPE } from "../http/choose-reply.ts";
import { contextOf } from "../http/generation-edge.ts";
import { answerEstimate } from "./answer-estimate.ts";
import { answerGeneration, type GenerationRouteOptions } from "./answer-generation.ts";

/** POST /generate: parse, have it made, answer. */
export function generateRoute(app: GatewayApp, options: GenerationRouteOptions): void {
  app.post("/generate", { schema, config: { idempotent: true } }, async (request, reply) => {
    if (isDryRun(request)) {
      const { body } = request;
      const draft = draftFromBody(body, { id: request.id, format: body.format ?? "png" });
      return answerEstimate(request, reply, { draft }, options);
    }
    const { kind, format } = chooseReply(request.headers.accept, request.body);
    const draft = draftFromBody(request.body, { id: request.id, format });
    const context = contextOf(request, reply, options);
    return answerGeneration(
      request,
      reply,
      { kind, draft, context, toJson: replyFromServed, sameForAll: true },
      options,
    );
  });
}

const schema = {
  operationId: "generate",
  summary: "Make a picture from a prompt, or from another picture and a prompt",
  description:
    "Answers with JSON, or with the bytes of the picture when the Accept header prefers image/png, image/jpeg, image/webp or image/*, " +
    "or with server-sent events when it prefers text/event-stream: those begin once a worker has accepted the request, and what fails before is an ordinary error. " +
    "Header x-atelier-seed holds the first picture's seed; x-atelier-simulated is true when no model ran (an event stream says so in its receipt only). Closing the connection cancels.",
  body: generateBody,
  querystring: dryRunQuery,
  response: {
    200: {
      description: "The picture.",
      content: {
        [JSON_TYPE]: { schema: orEstimate(generateReply) },
        "image/png": { schema: sentAsBytes },
        "image/jpeg": { schema: sentAsBytes },
        "image/webp": { schema: sentAsBytes },
        [EVENT_STREAM_TYPE]: { schema: sentAsStream(generateEvent) },
      },
    },
    ...errorResponses(400, 401, 403, 404, 406, 409, 413, 415, 422, 429, 500, 502, 503, 504, 507),
  },
};
