import type { Clock } from "@atelier/core";
import { EVENT_STREAM_HEADERS, EventStream, headersOut } from "@atelier/http";
import type { FastifyReply } from "fastify";
import { acceptedToJson, previewToJson, progressToJson, queuedToJson } from "../dialects/generate-events.ts";
import type { Served } from "../generations/ports.ts";
import { SEED_HEADER } from "../http/generation-edge.ts";
import type { GenerationEvent } from "../image-request.ts";
import { ProgressThrottle } from "../progress-throttle.ts";

/** Ten a second look like movement to a person. */
const PROGRESS_INTERVAL_MS = 100;

export interface SendEventsOptions {
  readonly clock: Clock;
  /** The request's, in its events. */
  readonly id: string;
  /** Begins the stream with `queued` where no worker has accepted after so long; absent: it waits for one. */
  readonly queuedAfterMs?: number | undefined;
  /** Starts the generation and tells what becomes of it on the way. */
  readonly generate: (onEvent: (event: GenerationEvent) => void) => Promise<Served>;
  /** The data of `completed`. */
  readonly completed: (served: Served) => object;
  /** Notes a failure where failures are noted, and gives what the caller reads of it. */
  readonly fail: (thrown: unknown) => object;
}

/**
 * Answers with events once a worker has accepted the request, or it has waited for one long enough for its caller to be
 * told. What fails before that rejects, for an ordinary error with a status of its own; what fails after it can only be
 * an event.
 */
export async function sendEvents(reply: FastifyReply, options: SendEventsOptions): Promise<FastifyReply> {
  const { clock, id, queuedAfterMs, generate, completed, fail } = options;
  const begun = Promise.withResolvers<void>();
  let begins = false;
  const begin = (seed?: number) => {
    begins = true;
    cancelQueued?.();
    if (seed !== undefined && !reply.sent) reply.header(SEED_HEADER, String(seed));
    begun.resolve();
  };
  const events = new EventStream(clock, () => progress.resume());
  const progress = new ProgressThrottle({
    clock,
    intervalMs: PROGRESS_INTERVAL_MS,
    send: (report) => events.send("progress", progressToJson(report)),
    sendPreview: (preview) => events.send("preview", previewToJson(preview)),
  });
  const cancelQueued =
    queuedAfterMs === undefined
      ? undefined
      : clock.after(queuedAfterMs, () => {
          events.send("queued", queuedToJson(id));
          begin();
        });

  generate((event) => {
    if (event.type === "progress") return progress.offer(event);
    if (event.type === "preview") return progress.offerPreview(event);
    events.send("accepted", acceptedToJson(id, event));
    begin(event.seed);
  })
    .then(
      (served) => {
        progress.finish();
        events.send("completed", completed(served));
        begin(served.request.seed);
      },
      async (thrown) => {
        cancelQueued?.();
        if (!begins) return begun.reject(thrown);
        await headersOut(reply);
        progress.finish();
        events.send("error", fail(thrown));
      },
    )
    .finally(() => events.end());

  await begun.promise;
  return reply.headers(EVENT_STREAM_HEADERS).send(events.readable);
}
