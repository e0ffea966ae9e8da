import { newId } from "@atelier/core";
import { failuresAs, sentAsWritten } from "@atelier/http";
import type { FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import { a1111Reply, replyToA1111, requestFromA1111 } from "../dialects/a1111.ts";
import { type A1111Call, A1111Calls } from "../dialects/a1111-calls.ts";
import { a1111Error, wordAsA1111 } from "../dialects/a1111-errors.ts";
import { type Img2ImgBody, img2imgBody, type Txt2ImgBody, txt2imgBody } from "../dialects/a1111-fields.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type { Generations } from "../generations/generations.ts";
import { type Part, partsOf } from "../generations/in-parts.ts";
import type { GenerationContext, Served } from "../generations/ports.ts";
import { contextOf, describeServed, IGNORED_HEADER, SIMULATED_HEADER } from "../http/generation-edge.ts";
import { picturesJson } from "../http/pictures-json.ts";
import { catalogFor } from "../tenants/allow-lists.ts";
import { a1111ListRoutes } from "./a1111-lists.ts";
import { a1111ProgressRoutes } from "./a1111-progress.ts";
import type { GenerationRouteOptions } from "./answer-generation.ts";

export interface A1111Options extends Pick<GenerationRouteOptions, "clock" | "requestTimeoutMs"> {
  readonly generations: Pick<Generations, "run" | "complete">;
  readonly fleet: Pick<Fleet, "views">;
}

const config = { idempotent: true, wordFailure: wordAsA1111 };

/** Whoever asks for a dry run has to be told that there is none. */
const nothing = z.strictObject({});

const response = {
  200: {
    description: "The pictures; where the call was interrupted, those that were finished.",
    content: { "application/json": { schema: sentAsWritten(a1111Reply) } },
  },
  ...failuresAs(a1111Error, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504, 507),
};

/** /sdapi/v1: pictures, as programs that are written for AUTOMATIC1111's web UI ask for them. */
export function a1111Routes(app: GatewayApp, options: A1111Options): void {
  const calls = new A1111Calls(options.clock);
  const txt2img = {
    operationId: "a1111Txt2Img",
    summary: "Make pictures from a prompt, as AUTOMATIC1111's API does",
    body: txt2imgBody,
    querystring: nothing,
    response,
  };
  app.post("/sdapi/v1/txt2img", { schema: txt2img, config }, (request, reply) =>
    answer(request, reply, request.body, { ...options, calls }),
  );
  const img2img = {
    operationId: "a1111Img2Img",
    summary: "Make pictures from another one, as AUTOMATIC1111's API does",
    body: img2imgBody,
    querystring: nothing,
    response,
  };
  app.post("/sdapi/v1/img2img", { schema: img2img, config }, (request, reply) =>
    answer(request, reply, request.body, { ...options, calls }),
  );
  a1111ProgressRoutes(app, { ...options, calls });
  a1111ListRoutes(app, options);
}

async function answer(
  request: FastifyRequest,
  reply: FastifyReply,
  body: Txt2ImgBody | Img2ImgBody,
  options: A1111Options & { readonly calls: A1111Calls },
): Promise<FastifyReply> {
  const { generations, fleet, calls, clock } = options;
  const models = catalogFor(request.caller, fleet.views());
  const asked = requestFromA1111(body, { id: newId("sd"), models });
  const draft = { ...asked.draft, seed: asked.draft.seed ?? request.keyedWork?.seed };
  const context = contextOf(request, reply, options);
  const parts = partsOf(draft, context, options);
  const call = calls.enter({
    tenant: request.caller.tenant,
    taskId: body.force_task_id ?? undefined,
    kind: "init_images" in body ? "img2img" : "txt2img",
    steps: draft.steps!,
    imagesOfParts: parts.map((part) => part.draft.numImages),
  });
  let served: Served[];
  try {
    served = await makeParts(
      parts,
      call,
      (part, onTheWay) => generations.run(part, { ...context, ...onTheWay }),
      context,
    );
  } finally {
    call.leave();
  }
  if (served[0] !== undefined) describeServed(reply, served[0]);
  if (served.some(({ generation }) => generation.receipt.simulated)) reply.header(SIMULATED_HEADER, "true");
  if (asked.ignored.length > 0) reply.header(IGNORED_HEADER, asked.ignored.join(", "));
  const whole = served.length === parts.length;
  if (!whole) await forgetKey(request);
  const { interrupted } = call;
  const json = replyToA1111({ ...asked, draft, body, served, interrupted, atMs: clock.nowMs() });
  const pictures = body.send_images === false ? [] : served.flatMap(({ generation }) => generation.pictures);
  return reply.type("application/json; charset=utf-8").send(picturesJson(json, pictures));
}

type OnTheWay = Pick<GenerationContext, "signal" | "onEvent">;

/** One after the other: a call takes one place at a time, whatever it asks for. What was taken back is left out. */
async function makeParts(
  parts: readonly Part[],
  call: A1111Call,
  make: (draft: Part["draft"], onTheWay: OnTheWay) => Promise<Served>,
  { signal: gone }: Pick<GenerationContext, "signal">,
): Promise<Served[]> {
  const served: Served[] = [];
  for (const [i, { draft }] of parts.entries()) {
    if (call.interrupted) break;
    const signal = AbortSignal.any([gone, call.begin(i)]);
    try {
      served.push(await make(draft, { signal, onEvent: (event) => call.heard(event) }));
    } catch (error) {
      // Whatever came first, nobody waits for this part.
      if (gone.aborted || !call.partGivenUp) throw error;
    }
  }
  return served;
}

/** An interrupted call's answer is nothing to give again to who asks for the whole under the same key. */
async function forgetKey(request: FastifyRequest): Promise<void> {
  await request.keyedWork?.release({ forget: true });
  request.keyedWork = null;
}
