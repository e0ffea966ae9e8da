import { newId } from "@atelier/core";
import { EVENT_STREAM_TYPE, errorResponses, sentAsBytes, sentAsStream } from "@atelier/http";
import type { GatewayApp } from "../app.ts";
import type { BackgroundGenerations } from "../background/background-generations.ts";
import { dryRunQuery, isDryRun, orEstimate } from "../dialects/estimate.ts";
import {
  draftFromGeneration,
  generationBody,
  generationReply,
  generationToJson,
  limitsFromBody,
} from "../dialects/generations.ts";
import { generationEvent } from "../dialects/generations-events.ts";
import { generationState, stateToJson } from "../dialects/generations-records.ts";
import { chooseReply, JSON_TYPE } from "../http/choose-reply.ts";
import { contextOf } from "../http/generation-edge.ts";
import { prefersAsync } from "../http/prefer.ts";
import { answerEstimate } from "./answer-estimate.ts";
import { answerGeneration, type GenerationRouteOptions } from "./answer-generation.ts";

/** A caller that looks at a stream would like to know within this time that it is in the right place. */
const QUEUED_AFTER_MS = 250;

export interface GenerationsRouteOptions extends GenerationRouteOptions {
  readonly background: Pick<BackgroundGenerations, "start">;
}

/** POST /v1/generations: our own API, which can say all that a request may be. */
export function generationsRoute(app: GatewayApp, options: GenerationsRouteOptions): void {
  app.post("/v1/generations", { schema, config: { idempotent: true } }, async (request, reply) => {
    const { body } = request;
    const id = newId("gen");
    if (isDryRun(request)) {
      const draft = draftFromGeneration(body, { id, format: body.format ?? "png" });
      return answerEstimate(request, reply, { draft, priority: body.priority }, options);
    }
    const { kind, format } = chooseReply(request.headers.accept, body);
    const draft = draftFromGeneration(body, { id, format });
    const context = contextOf(request, reply, { ...options, ...limitsFromBody(body) });
    // A stream tells how it goes on, which is more than the preference asks for.
    if (kind !== "events" && prefersAsync(request.headers["prefer"])) {
      const seed = draft.seed ?? request.keyedWork?.seed;
      const state = stateToJson(await options.background.start({ ...draft, seed }, context));
      return reply.code(202).headers({ location: state.links.self, "preference-applied": "respond-async" }).send(state);
    }
    return answerGeneration(
      request,
      reply,
      { kind, draft, context, toJson: (served) => generationToJson(id, served), queuedAfterMs: QUEUED_AFTER_MS },
      options,
    );
  });
}

const schema = {
  operationId: "createGeneration",
  summary: "Make pictures: the native API",
  description:
    "Answers with JSON, or with the bytes of the picture when the Accept header prefers image/png, image/jpeg, image/webp or image/*, " +
    "or with server-sent events when it prefers text/event-stream. Closing the connection cancels. " +
    "With Prefer: respond-async it answers 202 at once, and the generation goes on in the background: see GET /v1/generations/{id}.",
  body: generationBody,
  querystring: dryRunQuery,
  response: {
    200: {
      description: "The pictures.",
      content: {
        [JSON_TYPE]: { schema: orEstimate(generationReply) },
        "image/png": { schema: sentAsBytes },
        "image/jpeg": { schema: sentAsBytes },
        "image/webp": { schema: sentAsBytes },
        [EVENT_STREAM_TYPE]: { schema: sentAsStream(generationEvent) },
      },
    },
    202: generationState.meta({ description: "It goes on in the background; Location says where to ask." }),
    ...errorResponses(400, 401, 403, 404, 406, 409, 413, 415, 422, 429, 500, 502, 503, 504, 507),
  },
};
