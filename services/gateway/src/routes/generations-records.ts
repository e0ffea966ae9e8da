import type { Clock } from "@atelier/core";
import { errorResponses, sentAsBytes } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import { asBuffer } from "../as-buffer.ts";
import type { BackgroundGenerations } from "../background/background-generations.ts";
import { hasEnded } from "../background/generation-record.ts";
import { LISTED_MAX } from "../background/generation-store.ts";
import { generationList, generationState, receivedOf, stateToJson } from "../dialects/generations-records.ts";
import { receiptForHeader } from "../dialects/receipt.ts";
import { CACHE_HEADER, RECEIPT_HEADER, SEED_HEADER, SIMULATED_HEADER } from "../http/generation-edge.ts";

export interface GenerationRecordsOptions {
  readonly background: BackgroundGenerations;
  readonly clock: Clock;
}

/** Half a minute less than the minute after which proxies give up on a silent connection. */
const WAIT_MAX_MS = 30_000;

const idParameter = z.object({
  id: z.string().describe("Of a generation that was started with Prefer: respond-async."),
});

/** Generations in the background: read, waited for, listed, cancelled; their pictures. */
export function generationsRecordsRoutes(app: GatewayApp, { background, clock }: GenerationRecordsOptions): void {
  const read = {
    operationId: "getGeneration",
    summary: "A generation in the background, as it is now, through any gateway",
    params: idParameter,
    querystring: z.strictObject({
      wait: z.coerce
        .number()
        .int()
        .min(0)
        .max(WAIT_MAX_MS)
        .default(0)
        .describe("Milliseconds to wait for its end, if it has not ended."),
    }),
    response: { 200: generationState, ...errorResponses(400, 404, 503) },
  };
  app.get("/v1/generations/:id", { schema: read }, async (request, reply) => {
    const gone = new AbortController();
    reply.raw.once("close", () => gone.abort());
    const { params, query, caller } = request;
    return stateToJson(await background.wait(params.id, caller.tenant, query.wait, gone.signal));
  });

  const list = {
    operationId: "listGenerations",
    summary: "The caller's newest generations in the background",
    querystring: z.strictObject({ limit: z.coerce.number().int().min(1).max(LISTED_MAX).default(20) }),
    response: { 200: generationList, ...errorResponses(400) },
  };
  app.get("/v1/generations", { schema: list }, async ({ caller, query }) => {
    const { records, complete } = await background.list(caller.tenant, query.limit);
    return { generations: records.map(stateToJson), complete };
  });

  const cancel = {
    operationId: "cancelGeneration",
    summary: "Take back a generation in the background, whichever gateway sees to it",
    description: "One that has ended stays as it is. Its place on the device is free at the next step.",
    params: idParameter,
    response: {
      200: generationState.meta({ description: "It has ended: cancelled, or otherwise if that came first." }),
      202: generationState.meta({ description: "Its gateway was told and has not answered yet." }),
      ...errorResponses(404, 503),
    },
  };
  app.delete("/v1/generations/:id", { schema: cancel }, async ({ params, caller }, reply) => {
    const record = await background.cancel(params.id, caller.tenant);
    return reply.code(hasEnded(record) ? 200 : 202).send(stateToJson(record));
  });

  const picture = {
    operationId: "getGenerationImage",
    summary: "A picture of a generation in the background",
    params: idParameter.extend({ index: z.coerce.number().int().min(0).max(1_000).describe("From 0.") }),
    response: {
      200: {
        description: "The picture.",
        content: {
          "image/png": { schema: sentAsBytes },
          "image/jpeg": { schema: sentAsBytes },
          "image/webp": { schema: sentAsBytes },
        },
      },
      ...errorResponses(400, 404, 409, 503),
    },
  };
  app.get("/v1/generations/:id/images/:index", { schema: picture }, async ({ params, caller }, reply) => {
    const found = await background.picture(params.id, caller.tenant, params.index);
    const result = found.record.result!;
    const { receipt, outcome } = result;
    reply.header(SEED_HEADER, String(found.picture.seed)).header(CACHE_HEADER, outcome);
    if (receipt.simulated) reply.header(SIMULATED_HEADER, "true");
    const header = receiptForHeader(receivedOf(result));
    if (header !== undefined) reply.header(RECEIPT_HEADER, header);
    const keptS = Math.max(0, Math.floor((found.record.expiresAtMs - clock.nowMs()) / 1_000));
    reply.header("cache-control", `private, max-age=${keptS}, immutable`);
    return reply.type(found.picture.mediaType).send(asBuffer(found.picture.data));
  });
}
