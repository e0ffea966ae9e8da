import { ServingError } from "@atelier/core";
import { errorResponses, type HttpApp } from "@atelier/http";
import type { WorkQueue } from "@atelier/job-queue";
import type { DeadLetter } from "@atelier/proto";
import { z } from "zod";
import type { Jobs } from "../ports.ts";
import { callerOf } from "./caller-of.ts";
import { jobReply, jobToJson } from "./job-json.ts";
import { limitOf } from "./jobs-routes.ts";
import { jobParams, ownJob } from "./own-job.ts";

export interface DeadLettersRoutesParts {
  readonly jobs: Jobs;
  readonly work: Pick<WorkQueue, "deadLetters">;
}

const LETTERS_MAX = 1_000;
const REPLAYED_MAX = 10_000;

/** Items that failed as often as an item may, out of the others' way. */
export function deadLettersRoutes(app: HttpApp, { jobs, work }: DeadLettersRoutesParts): void {
  app.get("/v1/jobs/:id/dead-letters", { schema: listSchema }, async (request) => {
    const { id } = ownJob(jobs, request.params.id, callerOf(request)).record;
    return firstOf(work.deadLetters(id), request.query.limit);
  });

  app.post("/v1/jobs/:id/dead-letters/replay", { schema: replaySchema }, async (request) => {
    const { id } = ownJob(jobs, request.params.id, callerOf(request)).record;
    const indexes = request.body?.items ?? (await indexesOf(work.deadLetters(id)));
    if (indexes.length === 0) return { job: jobToJson(ownJob(jobs, id, callerOf(request))), items: 0 };
    const { job, items } = await jobs.retry(id, indexes);
    return { job: jobToJson(job), items };
  });

  app.get("/v1/dead-letters", { schema: allSchema }, async (request) => {
    if (callerOf(request).role === "user") {
      throw new ServingError("FORBIDDEN", "this asks for a key of role operator; this key's is user");
    }
    return firstOf(work.deadLetters(), request.query.limit);
  });
}

async function firstOf(letters: AsyncIterable<DeadLetter>, max: number) {
  const found: z.infer<typeof letter>[] = [];
  for await (const one of letters) {
    if (found.length === max) return { dead_letters: found, more: true };
    found.push(letterToJson(one));
  }
  return { dead_letters: found, more: false };
}

/** Each once: an item may have died in several rounds. */
async function indexesOf(letters: AsyncIterable<DeadLetter>): Promise<readonly number[]> {
  const indexes = new Set<number>();
  for await (const { item } of letters) {
    if (indexes.size === REPLAYED_MAX) break;
    if (item !== undefined) indexes.add(item.itemIndex);
  }
  return [...indexes];
}

const letter = z
  .object({
    job_id: z.string(),
    index: z.int(),
    model: z.string(),
    code: z.string(),
    message: z.string(),
    attempts: z.int(),
    at: z.iso.datetime(),
    worker: z.string(),
  })
  .meta({ id: "JobDeadLetter" });

function letterToJson({ item, code, message, attempts, atMs, workerId }: DeadLetter): z.infer<typeof letter> {
  return {
    job_id: item?.jobId ?? "",
    index: item?.itemIndex ?? 0,
    model: item?.parameters?.model ?? "",
    code,
    message,
    attempts,
    at: new Date(Number(atMs)).toISOString(),
    worker: workerId,
  };
}

const tags = ["jobs"];
const notFound = [404, "There is no such job, or it is another tenant's."] as const;
const querystring = z.strictObject({ limit: limitOf(LETTERS_MAX, 100) });
const letters = z
  .object({ dead_letters: z.array(letter), more: z.boolean().describe("There are more than `limit`.") })
  .meta({ id: "JobDeadLetters", description: "Oldest first." });

const listSchema = {
  tags,
  operationId: "listJobDeadLetters",
  summary: "Items of a job that failed as often as an item may",
  params: jobParams,
  querystring,
  response: { 200: letters, ...errorResponses(400, notFound, 503) },
};

const replaySchema = {
  tags,
  operationId: "replayJobDeadLetters",
  summary: "Queues dead letters again, all of them or some",
  params: jobParams,
  body: z
    .strictObject({
      items: z
        .array(z.int().min(0))
        .min(1)
        .max(REPLAYED_MAX)
        .optional()
        .describe(
          `a list of 1 to ${REPLAYED_MAX} indexes of items; the first ${REPLAYED_MAX} dead letters when absent`,
        ),
    })
    .nullish()
    .meta({ id: "JobReplay" }),
  response: {
    200: z.object({ job: jobReply, items: z.int() }).meta({ id: "JobReplayed" }),
    ...errorResponses(400, notFound, [409, "One of them has not failed, or the job was cancelled."], 503),
  },
};

const allSchema = {
  tags,
  operationId: "listDeadLetters",
  summary: "Dead letters of all jobs, for operators",
  querystring,
  response: { 200: letters, ...errorResponses(400, 503) },
};
