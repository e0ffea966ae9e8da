import type { Clock } from "@atelier/core";
import type { ErrorReply } from "@atelier/http";
import type { FastifyReply, FastifyRequest } from "fastify";
import { asBuffer } from "../as-buffer.ts";
import { receiptForHeader } from "../dialects/receipt.ts";
import type { Generations } from "../generations/generations.ts";
import type { GenerationContext, Served } from "../generations/ports.ts";
import type { ReplyKind } from "../http/choose-reply.ts";
import { describeServed, RECEIPT_HEADER } from "../http/generation-edge.ts";
import { jsonOfHits, picturesJson } from "../http/pictures-json.ts";
import type { ImageRequestDraft } from "../image-request.ts";
import type { Estimator } from "../tenants/estimate.ts";
import { sendEvents } from "./send-events.ts";

/** What every route that makes pictures is given. */
export interface GenerationRouteOptions {
  readonly generations: Pick<Generations, "run">;
  readonly estimator: Estimator;
  readonly clock: Clock;
  readonly requestTimeoutMs: number;
  /** Notes a failure in the log and the counts, and gives the answer to it. */
  readonly noteFailure: (thrown: unknown, request: FastifyRequest, reply: FastifyReply) => ErrorReply;
}

export interface Answering {
  readonly kind: ReplyKind;
  readonly draft: ImageRequestDraft;
  readonly context: GenerationContext;
  /** The dialect's JSON, which also ends a stream of events. */
  readonly toJson: (served: Served) => object;
  /** That JSON has nothing of the one request in it, as its id: every hit on a result is answered with the same. */
  readonly sameForAll?: boolean | undefined;
  /** Begins a stream of events with `queued` where no worker has accepted the request after this long. */
  readonly queuedAfterMs?: number | undefined;
}

/** Has the pictures made and answers with them, in the kind of answer that was chosen. */
export async function answerGeneration(
  request: FastifyRequest,
  reply: FastifyReply,
  { kind, draft: asked, context, toJson, sameForAll, queuedAfterMs }: Answering,
  { generations, clock, noteFailure }: GenerationRouteOptions,
): Promise<FastifyReply> {
  const draft = { ...asked, seed: asked.seed ?? request.keyedWork?.seed };
  if (kind === "events") {
    return sendEvents(reply, {
      clock,
      id: draft.id,
      queuedAfterMs,
      generate: (onEvent) => generations.run(draft, { ...context, onEvent }),
      completed: toJson,
      fail: (thrown) => noteFailure(thrown, request, reply).body,
    });
  }
  const served = await generations.run(draft, context);
  describeServed(reply, served);
  const { pictures } = served.generation;
  if (kind === "json") {
    const write = () => picturesJson(toJson(served), pictures);
    const json = sameForAll && served.outcome === "hit" ? jsonOfHits(served.generation, write) : write();
    return reply.type("application/json; charset=utf-8").send(json);
  }
  const receipt = receiptForHeader(served);
  if (receipt !== undefined) reply.header(RECEIPT_HEADER, receipt);
  const { mediaType, data } = pictures[0]!;
  return reply.type(mediaType).send(asBuffer(data));
}
