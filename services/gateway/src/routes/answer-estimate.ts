import type { FastifyReply, FastifyRequest } from "fastify";
import { estimateToJson } from "../dialects/estimate.ts";
import type { GenerationContext } from "../generations/ports.ts";
import type { ImageRequestDraft } from "../image-request.ts";
import type { Estimator } from "../tenants/estimate.ts";

export interface Estimating extends Partial<Pick<GenerationContext, "priority">> {
  readonly draft: ImageRequestDraft;
}

/** Answers with what the request would take and cost. */
export async function answerEstimate(
  { caller }: Pick<FastifyRequest, "caller">,
  reply: FastifyReply,
  { draft, priority }: Estimating,
  { estimator }: { readonly estimator: Estimator },
): Promise<FastifyReply> {
  const estimate = await estimator.estimate(draft, { caller, priority });
  return reply.type("application/json; charset=utf-8").send(estimateToJson(estimate));
}
