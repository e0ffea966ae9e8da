import type { Readable } from "node:stream";
import { ServingError } from "@atelier/core";
import { errorResponses, type HttpApp, HttpRefusal, IDEMPOTENCY_HEADER, readIdempotencyKey } from "@atelier/http";
import multipart from "@fastify/multipart";
import type { FastifyReply, FastifyRequest } from "fastify";
import { cloneSchema, type JobIntake, optionsOfQuery, type Submission, type Submitted } from "../intake/index.ts";
import type { Jobs } from "../ports.ts";
import { callerOf } from "./caller-of.ts";
import { goneSignal } from "./gone-signal.ts";
import { jobReply, jobToJson, previewReply, previewToJson } from "./job-json.ts";
import { notFound } from "./jobs-routes.ts";
import { jobParams, ownJob } from "./own-job.ts";
import { readSheetForm } from "./sheet-form.ts";

export interface SubmissionRoutesParts {
  readonly jobs: Jobs;
  readonly intake: Pick<JobIntake, "submit" | "clone">;
}

const BUSY_RETRY_S = 2;

/** How jobs come to be: POST /v1/jobs, its dry run, clones. Sheets are passed on as they come: nothing here holds a sheet. */
export function submissionRoutes(app: HttpApp, parts: SubmissionRoutesParts): void {
  void app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    await scope.register(multipart); // its parser among them
    scope.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
    const routes = scope as unknown as HttpApp;
    const config = { upload: true, idempotent: true };
    routes.post("/v1/jobs", { schema: submitSchema, config }, async (request, reply) => {
      const { dry_run: dryRun } = request.query as { dry_run?: string };
      if (dryRun !== undefined && dryRun !== "true" && dryRun !== "false") {
        const message = `dry_run is ${JSON.stringify(dryRun)}; it must be true or false`;
        throw new ServingError("INVALID_REQUEST", message, { field: "dry_run" });
      }
      return submit(request, reply, { ...parts, dryRun: dryRun === "true" });
    });
    routes.post("/v1/jobs/preview", { schema: previewSchema, config: { upload: true } }, (request, reply) =>
      submit(request, reply, { ...parts, dryRun: true }),
    );
  });

  app.post("/v1/jobs/:id/clone", { schema: cloneRouteSchema }, async (request, reply) => {
    const caller = callerOf(request);
    const { record } = ownJob(parts.jobs, request.params.id, caller);
    const signal = goneSignal(reply);
    const made = await parts.intake.clone({ caller, record, settings: request.body ?? {}, signal });
    return sendJob(reply.code(201), made.id, parts.jobs) as never;
  });
}

async function submit(
  request: FastifyRequest,
  reply: FastifyReply,
  { jobs, intake, dryRun }: SubmissionRoutesParts & { readonly dryRun: boolean },
): Promise<never> {
  const key = request.headers[IDEMPOTENCY_HEADER];
  const submitted = await intake.submit({
    ...(await sheetOf(request)),
    caller: callerOf(request),
    idempotencyKey: key === undefined ? undefined : readIdempotencyKey(String(key)),
    dryRun,
    signal: goneSignal(reply),
  });
  return answer(submitted, reply, jobs) as never; // fastify types an answer by each of its statuses
}

type Sheet = Pick<Submission, "contentType" | "body" | "contentLength" | "options">;

async function sheetOf(request: FastifyRequest): Promise<Sheet> {
  const { "content-type": contentType, "content-length": length } = request.headers;
  if (contentType === undefined || (request.body === undefined && !request.isMultipart())) {
    throw new HttpRefusal(
      415,
      "there is no body with a content-type; send text/csv, application/jsonl, application/json or a form",
    );
  }
  const query = request.query as Record<string, unknown>;
  if (/^multipart\/form-data\b/i.test(contentType)) {
    const stray = Object.keys(query).find((name) => name !== "dry_run");
    if (stray === undefined) return readSheetForm(request);
    const message = `${stray} is in the query; the options of a form are in its field job`;
    throw new ServingError("INVALID_REQUEST", message, { field: stray });
  }
  return {
    contentType,
    body: request.body as Readable,
    contentLength: length === undefined ? undefined : Number(length),
    options: optionsOfQuery(query),
  };
}

function answer(submitted: Submitted, reply: FastifyReply, jobs: Jobs): FastifyReply {
  switch (submitted.type) {
    case "preview":
      return reply.send(previewToJson(submitted.preview, etaMsOf(submitted.preview.predictedDeviceMs, jobs)));
    case "accepted":
      return sendJob(reply.code(201), submitted.record.id, jobs);
    case "replayed":
      return sendJob(reply.code(201).header("idempotency-replayed", "true"), submitted.jobId, jobs);
    case "key_of_another":
      throw new HttpRefusal(
        422,
        "this idempotency key was used for another submission; every one needs a key of its own",
        {
          code: "CONFLICT",
          field: IDEMPOTENCY_HEADER,
        },
      );
    case "in_progress":
      throw new HttpRefusal(409, "the same submission is still in progress under this idempotency key", {
        code: "CONFLICT",
        field: IDEMPOTENCY_HEADER,
        headers: { "retry-after": String(BUSY_RETRY_S) },
      });
  }
}

/** With where it is. */
function sendJob(reply: FastifyReply, id: string, jobs: Pick<Jobs, "get">): FastifyReply {
  const job = jobs.get(id);
  if (job === undefined) throw new ServingError("NOT_FOUND", `the job ${id} was deleted meanwhile`, { field: "id" });
  return reply.header("location", `/v1/jobs/${id}`).send(jobToJson(job));
}

/**
 * Until a job of `deviceMs` would end if it were submitted now, by what running jobs get done at the moment; null where none
 * runs, since nobody here knows how many devices there are.
 */
function etaMsOf(deviceMs: number, jobs: Pick<Jobs, "list">): number | null {
  let devices = 0;
  let waitingMs = 0;
  for (const { record, counts, itemsPerMinute } of jobs.list({ status: "running", max: RUNNING_LOOKED_AT })) {
    const itemMs = record.itemCount === 0 ? 0 : record.predictedDeviceMs / record.itemCount;
    devices += (itemsPerMinute / 60_000) * itemMs;
    waitingMs += (counts.queued + counts.running) * itemMs;
  }
  return devices > 0 ? (waitingMs + deviceMs) / devices : null;
}

const RUNNING_LOOKED_AT = 1_000;

const tags = ["jobs"];

const failures = errorResponses(
  [400, "The sheet or an option is wrong: the message names the line and the field."],
  [403, "The key does not allow this, such as a model, or a class."],
  [409, "The same submission is still in progress under this idempotency key. Retry-After says when to come back."],
  [413, "The sheet is larger, or comes to more pictures, than this service takes."],
  [415, "The body is neither CSV, JSON lines, JSON nor a form."],
  [422, "The idempotency key was used for another submission."],
  [429, "The tenant's month has no room for it."],
  [
    503,
    "The queue, the object store or a gateway is away; nothing of the job was kept. Retry-After says when to come back.",
  ],
);

const submitSchema = {
  tags,
  operationId: "submitJob",
  summary: "Takes a sheet of pictures to make; with dry_run=true says what it would come to",
  description:
    "The body is text/csv, application/jsonl, application/json or multipart/form-data (a field `job` of options as JSON, then a file `sheet`); it is read as it comes. Options of CSV and JSON lines are in the query.",
  response: {
    200: previewReply,
    201: jobReply.meta({ description: "It is kept, and survives whatever happens." }),
    ...failures,
  },
};

const previewSchema = {
  tags,
  operationId: "previewJob",
  summary: "What a submission would come to: its first pictures, their number, its price",
  description: "As POST /v1/jobs?dry_run=true. Nothing of it is stored.",
  response: { 200: previewReply, ...failures },
};

const cloneRouteSchema = {
  tags,
  operationId: "cloneJob",
  summary: "A new job of the same items",
  params: jobParams,
  body: cloneSchema.nullish().meta({ id: "JobClone" }),
  response: { 201: jobReply.meta({ description: "It is kept." }), ...errorResponses(400, notFound, 429, 503) },
};
