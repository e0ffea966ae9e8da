import { type Clock, Deadline, ServingError } from "@atelier/core";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { PriorityClass } from "../caller.ts";
import type { CacheUse, GenerationContext, Served } from "../generations/ports.ts";

/** The first picture's seed, on every kind of answer. */
export const SEED_HEADER = "x-atelier-seed";
export const CACHE_HEADER = "x-atelier-cache";
export const SIMULATED_HEADER = "x-atelier-simulated";

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
  };
}

/** Source: RFC 9111, section 5.2.1. */
export function cacheUseOf(header: string | undefined): CacheUse {
  const directives = new Set((header ?? "").split(",").map((part) => part.trim().toLowerCase()));
  const noStore = directives.has("no-store");
  return { read: !noStore && !directives.has("no-cache"), store: !noStore, approximate: false };
}

/** What every answer with pictures says in its headers. */
export function describeServed(reply: FastifyReply, { request, generation, outcome }: Served): FastifyReply {
  const { receipt } = generation;
  reply.header(SEED_HEADER, String(request.seed)).header(CACHE_HEADER, outcome);
  reply.header("server-timing", serverTiming(receipt.times));
  if (receipt.simulated) reply.header(SIMULATED_HEADER, "true");
  return reply;
}

/** Source: W3C Server Timing, section 4. Milliseconds; of a cached picture, those of its making. */
function serverTiming(times: Served["generation"]["receipt"]["times"]): string {
  const { queueMs, textEncodeMs, denoiseMs, imageDecodeMs } = times;
  const entries = { queue: queueMs, text_encode: textEncodeMs, denoise: denoiseMs, image_decode: imageDecodeMs };
  return Object.entries(entries)
    .map(([name, ms]) => `${name};dur=${ms.toFixed(1)}`)
    .join(", ");
}

function onCallerGone(reply: FastifyReply, run: () => void): void {
  // It may have left while its body was read.
  if (reply.raw.closed) run();
  else reply.raw.once("close", run);
}
