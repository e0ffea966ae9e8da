import { z } from "zod";
import { errorEvent, queuedEvent, wayEvents } from "./generate-events.ts";
import { generationReply } from "./generations.ts";

/** One event of the stream that POST /v1/generations answers with: its name, and its data parsed. */
export const generationEvent = z
  .discriminatedUnion("event", [
    queuedEvent,
    ...wayEvents,
    z.object({ event: z.literal("completed"), data: generationReply }),
    errorEvent,
  ])
  .meta({
    id: "GenerationEvent",
    description:
      "Each event of the stream has a name (`event:`) and JSON on one line (`data:`). In order: queued where the request waits for a worker, " +
      "accepted, any number of progress and preview, then completed (the JSON answer) or error (the error body). `request_id` is the generation's id. " +
      "Lines that begin with a colon keep the connection alive.",
  });
