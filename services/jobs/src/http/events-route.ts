import { type Clock, ServingError } from "@atelier/core";
import { EVENT_STREAM_HEADERS, EVENT_STREAM_TYPE, errorResponses, type HttpApp, sentAsStream } from "@atelier/http";
import type { EventLog } from "@atelier/job-queue";
import { z } from "zod";
import { ITEM_STATES } from "../job.ts";
import type { Jobs } from "../ports.ts";
import { callerOf } from "./caller-of.ts";
import { JobEventStream } from "./job-event-stream.ts";
import { jobReply } from "./job-json.ts";
import { jobParams, ownJob } from "./own-job.ts";

export interface EventsRouteParts {
  readonly jobs: Jobs;
  readonly events: Pick<EventLog, "read" | "lastSequence">;
  readonly clock: Clock;
}

/** GET /v1/jobs/{id}/events: what happens to a job, from now on or from where a reader left off. */
export function eventsRoute(app: HttpApp, { jobs, events, clock }: EventsRouteParts): void {
  const streams = new Set<JobEventStream>();
  app.addHook("preClose", async () => {
    for (const stream of streams) stream.close();
  });
  app.get("/v1/jobs/:id/events", { schema }, async (request, reply) => {
    const job = ownJob(jobs, request.params.id, callerOf(request));
    const after = lastEventIdOf(request.headers["last-event-id"]);
    const begun = after === undefined ? undefined : { after, lost: after > (await events.lastSequence()) };
    const stream = new JobEventStream({ id: job.record.id, jobs, events, clock });
    streams.add(stream);
    reply.raw.once("close", () => {
      streams.delete(stream);
      stream.close();
    });
    void stream.run(begun).catch((error: unknown) => stream.fail(error));
    return reply.headers(EVENT_STREAM_HEADERS).send(stream.readable as never);
  });
}

/** @throws ServingError INVALID_REQUEST where it is none of ours. */
function lastEventIdOf(header: string | string[] | undefined): number | undefined {
  if (header === undefined || header === "") return undefined;
  const sequence = Number(header);
  if (/^\d+$/.test(String(header)) && Number.isSafeInteger(sequence)) return sequence;
  const message = `last-event-id is ${JSON.stringify(String(header).slice(0, 60))}; it must be the id of an event of this job`;
  throw new ServingError("INVALID_REQUEST", message, { field: "last-event-id" });
}

const about = z.object({ job: jobReply });
const event = <Name extends string, Data extends z.ZodType>(name: Name, data: Data) =>
  z.object({ event: z.literal(name), id: z.int(), data });

const jobEvent = z
  .discriminatedUnion("event", [
    event("job", about),
    event("progress", about),
    event(
      "item",
      z.object({
        index: z.int(),
        state: z.enum(ITEM_STATES),
        error: z.object({ code: z.string(), message: z.string(), attempts: z.int() }).nullable(),
      }),
    ),
    event("reset", about.extend({ message: z.string() })),
  ])
  .meta({
    id: "JobEvent",
    description:
      "job: it is another than it was; item: one of its pictures has ended; progress: how far it is, at most each half second; reset: what Last-Event-ID names is not there any more, and this is how it stands.",
  });

const schema = {
  tags: ["jobs"],
  operationId: "jobEvents",
  summary: "What happens to a job, as server-sent events; Last-Event-ID goes on after an event",
  description:
    "Without Last-Event-ID it begins with the job as it is. A reader that is slow is sent what it missed from the log; progress is left out for it.",
  params: jobParams,
  response: {
    200: {
      description: "Until the job is deleted.",
      content: { [EVENT_STREAM_TYPE]: { schema: sentAsStream(jobEvent) } },
    },
    ...errorResponses(400, [404, "There is no such job, or it is another tenant's."], 503),
  },
};
