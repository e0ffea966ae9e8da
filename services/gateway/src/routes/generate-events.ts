import type { Clock } from "@atelier/core";
import type { FastifyReply } from "fastify";
import { replyFromServed } from "../dialects/generate.ts";
import { acceptedToJson, previewToJson, progressToJson } from "../dialects/generate-events.ts";
import type { Served } from "../generations/ports.ts";
import type { ErrorBody } from "../http/error-reply.ts";
import { EVENT_STREAM_HEADERS, EventStream } from "../http/event-stream.ts";
import { SEED_HEADER } from "../http/generation-edge.ts";
import type { GenerationEvent } from "../image-request.ts";
import { ProgressThrottle } from "../progress-throttle.ts";

/** Ten a second look like movement to a person. */
const PROGRESS_INTERVAL_MS = 100;

export interface GenerateEventsOptions {
  readonly clock: Clock;
  /** The request's. */
  readonly id: string;
  /** Starts the generation and tells what becomes of it on the way. */
  readonly generate: (onEvent: (event: GenerationEvent) => void) => Promise<Served>;
  /** Notes a failure where failures are noted, and gives what the caller reads of it. */
  readonly fail: (thrown: unknown) => ErrorBody;
}

/**
 * Answers with events once a worker has accepted the request. What fails before that rejects, for an ordinary error
 * with a status of its own; what fails after it can only be an event.
 */
export async function sendEvents(reply: FastifyReply, options: GenerateEventsOptions): Promise<FastifyReply> {
  const { clock, id, generate, fail } = options;
  const begun = Promise.withResolvers<number>();
  let accepted = false;
  const events = new EventStream(clock, () => progress.resume());
  const progress = new ProgressThrottle({
    clock,
    intervalMs: PROGRESS_INTERVAL_MS,
    send: (report) => events.send("progress", progressToJson(report)),
    sendPreview: (preview) => events.send("preview", previewToJson(preview)),
  });

  generate((event) => {
    if (event.type === "progress") return progress.offer(event);
    if (event.type === "preview") return progress.offerPreview(event);
    accepted = true;
    events.send("accepted", acceptedToJson(id, event));
    begun.resolve(event.seed);
  })
    .then(
      (served) => {
        progress.finish();
        events.send("completed", replyFromServed(served));
        begun.resolve(served.request.seed);
      },
      (thrown) => {
        if (!accepted) return begun.reject(thrown);
        progress.finish();
        events.send("error", fail(thrown));
      },
    )
    .finally(() => events.end());

  const seed = await begun.promise;
  return reply.headers(EVENT_STREAM_HEADERS).header(SEED_HEADER, String(seed)).send(events.readable);
}
