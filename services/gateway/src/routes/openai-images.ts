import { newId } from "@atelier/core";
import { EVENT_STREAM_TYPE, failuresAs, sentAsStream } from "@atelier/http";
import type { FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import { openAiError, wordAsOpenAi } from "../dialects/openai-errors.ts";
import { type OpenAiEventKind, openAiEvent } from "../dialects/openai-events.ts";
import {
  draftFromOpenAi,
  ignoredFields,
  type OpenAiImagesBody,
  openAiEditBody,
  openAiGenerationBody,
  openAiImagesReply,
  repliesToOpenAi,
} from "../dialects/openai-images.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type { Generations } from "../generations/generations.ts";
import { partsOf } from "../generations/in-parts.ts";
import type { Served } from "../generations/ports.ts";
import { acceptFormsOnly, FORM_TYPE } from "../http/form-body.ts";
import { contextOf, describeServed, IGNORED_HEADER, SIMULATED_HEADER } from "../http/generation-edge.ts";
import { picturesJson } from "../http/pictures-json.ts";
import type { GenerationRouteOptions } from "./answer-generation.ts";
import { sendOpenAiEvents } from "./send-openai-events.ts";

export interface OpenAiImagesOptions extends Omit<GenerationRouteOptions, "generations" | "estimator"> {
  readonly generations: Pick<Generations, "run" | "complete">;
  readonly fleet: Pick<Fleet, "views">;
  readonly bodyMaxBytes: number;
}

/** Such as a dry run: what is not done here is not passed over. */
const nothing = z.strictObject({});

const config = { idempotent: true, wordFailure: wordAsOpenAi };

const response = {
  200: {
    description: "The pictures.",
    content: {
      "application/json": { schema: openAiImagesReply },
      [EVENT_STREAM_TYPE]: { schema: sentAsStream(openAiEvent) },
    },
  },
  ...failuresAs(openAiError, 400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504, 507),
};

/** POST /v1/images/generations and /v1/images/edits, as programs that are written for OpenAI's API call them. */
export function openAiImagesRoutes(app: GatewayApp, options: OpenAiImagesOptions): void {
  const generate = {
    operationId: "createOpenAiImage",
    summary: "Make pictures, as OpenAI's API does",
    description: "With `stream` it answers with server-sent events. Closing the connection cancels.",
    body: openAiGenerationBody,
    querystring: nothing,
    response,
  };
  app.post("/v1/images/generations", { schema: generate, config }, async (request, reply) =>
    answer(request, reply, request.body, "image_generation", options),
  );

  const edit = {
    operationId: "editOpenAiImage",
    summary: "Make pictures from another one, as OpenAI's API does",
    description: "The whole picture is drawn anew: there are no masks, and one picture to start from.",
    consumes: [FORM_TYPE],
    body: openAiEditBody,
    querystring: nothing,
    response,
  };
  app.register(async (scope: GatewayApp) => {
    await acceptFormsOnly(scope, { bodyMaxBytes: options.bodyMaxBytes, ...FORM });
    scope.post("/v1/images/edits", { schema: edit, config }, async (request, reply) =>
      answer(request, reply, request.body, "image_edit", options),
    );
  });
}

const FORM = {
  numbers: ["n", "output_compression", "partial_images", "seed", "steps", "guidance_scale", "strength"],
  booleans: ["stream"],
  json: ["loras"],
  file: { name: "image", others: ["image[]"] },
  refused: {
    mask: "mask is not served here: the whole picture is drawn anew from image",
    markup: "markup is not served here: the whole picture is drawn anew from image",
  },
};

async function answer(
  request: FastifyRequest,
  reply: FastifyReply,
  body: OpenAiImagesBody,
  kind: OpenAiEventKind,
  options: OpenAiImagesOptions,
): Promise<FastifyReply> {
  const { generations, clock, noteFailure } = options;
  const ignored = ignoredFields(body);
  const context = contextOf(request, reply, options);
  const asked = draftFromOpenAi(body, newId("img"));
  const parts = partsOf({ ...asked, seed: asked.seed ?? request.keyedWork?.seed }, context, options);
  const created = Math.floor(clock.nowMs() / 1_000);
  if (ignored.length > 0) reply.header(IGNORED_HEADER, ignored.join(", "));
  if (body.stream === true) {
    return sendOpenAiEvents(reply, {
      clock,
      kind,
      parts,
      complete: (draft) => generations.complete(draft, context.caller),
      run: (draft, onEvent) => generations.run(draft, { ...context, onEvent }),
      partialImages: body.partial_images ?? 0,
      ignored,
      createdAt: created,
      fail: (thrown) => noteFailure(thrown, request, reply).body,
    });
  }
  const all: Served[] = [];
  // One after the other: a request takes one place at a time, whatever it asks for.
  for (const { draft } of parts) all.push(await generations.run(draft, context));
  describeServed(reply, all[0]!);
  if (all.some(({ generation }) => generation.receipt.simulated)) reply.header(SIMULATED_HEADER, "true");
  const pictures = all.flatMap(({ generation }) => generation.pictures);
  return reply
    .type("application/json; charset=utf-8")
    .send(picturesJson(repliesToOpenAi(all, { created, ignored }), pictures));
}
