import { type Clock, Deadline, ServingError } from "@atelier/core";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { PriorityClass } from "../caller.ts";
import type { CacheOutcome, CacheUse, GenerationContext, Served } from "../generations/ports.ts";
import { rateHeaders } from "../tenants/rate-headers.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** How its pictures came about; null where it had none. */
    servedAs: CacheOutcome | null;
  }
}

/** The first picture's seed, on every kind of answer. */
export const SEED_HEADER = "x-atelier-seed";
export const CACHE_HEADER = "x-atelier-cache";
export const SIMULATED_HEADER = "x-atelier-simulated";
/** What an overloaded system took away: "steps=25->12, sampler=ddim->dpmpp_2m". */
export const REDUCED_HEADER = "x-atelier-reduced";
/** Names the fields that were read and change nothing, where a dialect has such. */
export const IGNORED_HEADER = "x-atelier-ignored";
/** Beside a picture's own bytes: the receipt as JSON in base64url. */
export const RECEIPT_HEADER = "x-atelier-receipt";

export interface EdgeOptions {
  readonly clock: Clock;
  /** The longest that any request may take. */
  readonly requestTimeoutMs: number;
  /** What the caller asked for, where its dialect can say it. */
  readonly deadlineMs?: number | undefined;
  readonly priority?: PriorityClass | undefined;
  readonly cache?: Partial<CacheUse> | undefined;
}

/** What HTTP says about a request, whatever its dialect. Leaving closes it. */
export function contextOf(request: FastifyRequest, reply: FastifyReply, options: EdgeOptions): GenerationContext {
  const { clock, requestTimeoutMs, deadlineMs = requestTimeoutMs, priority, cache } = options;
  const gone = new AbortController();
  onCallerGone(reply, () => gone.abort(new ServingError("CANCELLED", "the caller went away")));
  return {
    caller: request.caller,
    deadline: Deadline.after(clock, Math.min(deadlineMs, requestTimeoutMs)),
    signal: gone.signal,
    priority,
    cache: { ...cacheUseOf(request.headers["cache-control"]), ...cache },
    onServed: (outcome) => {
      request.servedAs = outcome;
    },
    onStanding: (standing) => void reply.headers(rateHeaders(standing)),
  };
}

/** Source: RFC 9111, section 5.2.1. */
export function cacheUseOf(header: string | undefined): CacheUse {
  const directives = new Set((header ?? "").split(",").map((part) => part.trim().toLowerCase()));
  const noStore = directives.has("no-store");
  return { read: !noStore && !directives.has("no-cache"), store: !noStore, approximate: false };
}

/** What every answer with pictures says in its headers. */
export function describeServed(reply: FastifyReply, served: Served): FastifyReply {
  const { request, generation, outcome } = served;
  reply.header(SEED_HEADER, String(request.seed)).header(CACHE_HEADER, outcome);
  reply.header("server-timing", serverTiming(served, reply.elapsedTime));
  if (request.reduced !== undefined) reply.header(REDUCED_HEADER, describeReduced(request));
  if (generation.receipt.simulated) reply.header(SIMULATED_HEADER, "true");
  return reply;
}

function describeReduced({ reduced = {}, steps, sampler }: Served["request"]): string {
  const made = { steps, sampler };
  return Object.entries(reduced)
    .map(([name, asked]) => `${name}=${asked}->${made[name as keyof typeof made]}`)
    .join(", ");
}

/**
 * Milliseconds: the worker's stages (where this request ran none, as from the cache, they are left out), `gateway` for
 * all that is not the worker's, `total` since the request came. Stages of several pictures overlap, so that their sum
 * may exceed the total; the gateway's share is then 0.
 *
 * Source: W3C Server Timing, section 4.
 */
export function serverTiming({ generation, outcome }: Pick<Served, "generation" | "outcome">, totalMs: number): string {
  const { queueMs, textEncodeMs, denoiseMs, imageDecodeMs } = generation.receipt.times;
  const stages = { queue: queueMs, text_encode: textEncodeMs, denoise: denoiseMs, image_decode: imageDecodeMs };
  const worker: Partial<typeof stages> = outcome === "hit" ? {} : stages;
  const workerMs = Object.values(worker).reduce((sum, ms) => sum + ms, 0);
  const entries = { ...worker, gateway: Math.max(0, totalMs - workerMs), total: totalMs };
  const durations = Object.entries(entries).map(([name, ms]) => `${name};dur=${ms.toFixed(1)}`);
  return [`cache;desc=${outcome}`, ...durations].join(", ");
}

function onCallerGone(reply: FastifyReply, run: () => void): void {
  // It may have left while its body was read.
  if (reply.raw.closed) run();
  else
    reply.raw.once("close", () => {
      if (!reply.raw.writableFinished) run(); // with its answer it has not gone, it is done
    });
}
