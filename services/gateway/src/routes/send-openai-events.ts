import type { Clock } from "@atelier/core";
import { EVENT_STREAM_HEADERS, EventStream, headersOut } from "@atelier/http";
import type { FastifyReply } from "fastify";
import { type OpenAiEventKind, PartialImages, partialToEvent, servedToEvents } from "../dialects/openai-events.ts";
import { lookOf } from "../dialects/openai-images.ts";
import type { Part } from "../generations/in-parts.ts";
import type { Served } from "../generations/ports.ts";
import { SEED_HEADER } from "../http/generation-edge.ts";
import type { CompleteRequest, GenerationEvent, ImageRequestDraft } from "../image-request.ts";

export interface SendOpenAiEventsOptions {
  readonly clock: Clock;
  readonly kind: OpenAiEventKind;
  readonly parts: readonly Part[];
  /** A part's request with its model's defaults. */
  readonly complete: (draft: ImageRequestDraft) => CompleteRequest;
  readonly run: (draft: ImageRequestDraft, onEvent: (event: GenerationEvent) => void) => Promise<Served>;
  readonly partialImages: number;
  readonly ignored: readonly string[];
  /** Seconds since 1970. */
  readonly createdAt: number;
  /** Notes a failure where failures are noted, and gives what the caller reads of it. */
  readonly fail: (thrown: unknown) => object;
}

/**
 * Answers with OpenAI's events once a worker has accepted the first of `parts`. What fails before that rejects, for an
 * ordinary error with a status of its own; what fails after it can only be an event.
 */
export async function sendOpenAiEvents(reply: FastifyReply, options: SendOpenAiEventsOptions): Promise<FastifyReply> {
  const { clock, kind, parts, complete, run, ignored, createdAt, fail } = options;
  const several = parts.length > 1 || parts[0]!.draft.numImages > 1;
  const begun = Promise.withResolvers<void>();
  let begins = false;
  const begin = (seed: number) => {
    if (begins) return;
    begins = true;
    reply.header(SEED_HEADER, String(seed));
    events.open();
    begun.resolve();
  };
  // It keeps no count of what a slow reader leaves: a few small previews are all that comes before the pictures.
  const events = new EventStream(clock, () => {});
  const place = (first: number) => (picture: number) => ({
    kind,
    createdAt,
    imageIndex: several ? first + picture : undefined,
  });

  const runPart = async ({ draft, first }: Part) => {
    const partials = new PartialImages(options.partialImages);
    const asked = complete(draft);
    const stepsToRun = Math.ceil(asked.steps * (asked.initPicture?.strength ?? 1));
    const served = await run({ ...draft, previewEvery: partials.previewEvery(stepsToRun) }, (event) => {
      if (event.type === "accepted") begin(event.seed);
      if (event.type !== "preview") return;
      const index = partials.indexOf(event);
      if (index === undefined) return;
      const partial = partialToEvent(event, {
        ...place(first)(event.imageIndex),
        index,
        look: lookOf({ request: asked }),
      });
      events.send(partial.type, partial);
    });
    begin(served.request.seed);
    for (const event of servedToEvents(served, place(first), ignored)) events.send(event.type, event);
  };

  const runAll = async () => {
    // One after the other: a request takes one place at a time, whatever it asks for.
    for (const part of parts) await runPart(part);
  };
  runAll()
    .catch(async (thrown: unknown) => {
      if (!begins) return begun.reject(thrown);
      await headersOut(reply);
      events.send("error", { type: "error", ...fail(thrown) });
    })
    .finally(() => events.end());

  await begun.promise;
  return reply.headers(EVENT_STREAM_HEADERS).send(events.readable);
}
