import { ServingError } from "@atelier/core";
import { errorResponses, type HttpApp } from "@atelier/http";
import type { FastifyRequest } from "fastify";
import { z } from "zod";
import { JOB_PRIORITIES, JOB_STATUSES } from "../job.ts";
import type { Jobs } from "../ports.ts";
import { callerOf } from "./caller-of.ts";
import { jobReply, jobToJson } from "./job-json.ts";
import { jobParams, listedTenant, ownJob } from "./own-job.ts";

export interface JobsRoutesParts {
  readonly jobs: Jobs;
}

const LIST_MAX = 200;
const RETRIED_MAX = 10_000;

/** Jobs, one and all, and what can be done with them; how they come to be is submission-routes.ts'. */
export function jobsRoutes(app: HttpApp, { jobs }: JobsRoutesParts): void {
  app.get("/v1/jobs", { schema: listSchema }, async (request) => {
    const { status, name, limit, after, tenant: asked } = request.query;
    const tenant = listedTenant(asked, callerOf(request));
    if (after !== undefined) checkAfter(jobs, after, request);
    const found = jobs.list({
      max: limit + 1, // one more tells whether there is one more
      ...(tenant !== undefined && { tenant }),
      ...(status !== undefined && { status }),
      ...(name !== undefined && { name }),
      ...(after !== undefined && { after }),
    });
    const page = found.slice(0, limit);
    return { jobs: page.map(jobToJson), next: found.length > limit ? page.at(-1)!.record.id : null };
  });

  app.get("/v1/jobs/:id", { schema: oneSchema }, async (request) =>
    jobToJson(ownJob(jobs, request.params.id, callerOf(request))),
  );

  app.patch("/v1/jobs/:id", { schema: changeSchema }, async (request) => {
    const caller = callerOf(request);
    const { id } = ownJob(jobs, request.params.id, caller).record;
    const { priority } = request.body;
    if (priority === "standard" && caller.priority === "bulk") {
      const message = `priority is "standard", and this key may ask for "bulk" at most`;
      throw new ServingError("FORBIDDEN", message, { field: "priority" });
    }
    return jobToJson(await jobs.setPriority(id, priority));
  });

  app.delete("/v1/jobs/:id", { schema: removeSchema }, async (request, reply) => {
    await jobs.remove(ownJob(jobs, request.params.id, callerOf(request)).record.id);
    return reply.code(204).send(null);
  });

  for (const action of ["pause", "resume", "cancel"] as const) {
    app.post(`/v1/jobs/:id/${action}`, { schema: actionSchema(action) }, async (request) => {
      const { id } = ownJob(jobs, request.params.id, callerOf(request)).record;
      return jobToJson(await jobs[action](id));
    });
  }

  app.post("/v1/jobs/:id/retry", { schema: retrySchema }, async (request) => {
    const { id } = ownJob(jobs, request.params.id, callerOf(request)).record;
    const { job, items } = await jobs.retry(id, request.body?.items);
    return { job: jobToJson(job), items };
  });
}

/** A job that is gone, or another's, is nothing to go on after. */
function checkAfter(jobs: Jobs, after: string, request: FastifyRequest): void {
  try {
    ownJob(jobs, after, callerOf(request));
  } catch (cause) {
    throw new ServingError("INVALID_REQUEST", `after is ${JSON.stringify(after)}, which is no job (any more)`, {
      field: "after",
      cause,
    });
  }
}

const tags = ["jobs"];
const job = { 200: jobReply };
export const notFound = [404, "There is no such job, or it is another tenant's."] as const;
const conflict = [409, "The job's status does not allow it; the message names the status."] as const;

export const limitOf = (max: number, otherwise: number) =>
  z.coerce.number().int().min(1).max(max).default(otherwise).describe(`a whole number from 1 to ${max}`);

const listSchema = {
  tags,
  operationId: "listJobs",
  summary: "Jobs, newest first",
  querystring: z.strictObject({
    status: z.enum(JOB_STATUSES).optional(),
    name: z.string().min(1).max(200).optional().describe("a text of 1 to 200 characters that the name has in it"),
    tenant: z.string().max(64).optional().describe("a tenant's name, or * for all: for operators and admins"),
    limit: limitOf(LIST_MAX, 50),
    after: z.string().max(64).optional().describe("`next` of the page before"),
  }),
  response: {
    200: z
      .object({ jobs: z.array(jobReply), next: z.string().nullable() })
      .meta({ id: "Jobs", description: "A page." }),
    ...errorResponses(400, 503),
  },
};

const oneSchema = {
  tags,
  operationId: "getJob",
  summary: "A job as it is now",
  params: jobParams,
  response: { ...job, ...errorResponses(notFound, 503) },
};

const changeSchema = {
  tags,
  operationId: "changeJob",
  summary: "Gives what is left of a job another class",
  params: jobParams,
  body: z.strictObject({ priority: z.enum(JOB_PRIORITIES) }).meta({ id: "JobChange" }),
  response: { ...job, ...errorResponses(400, notFound, conflict, 503) },
};

const removeSchema = {
  tags,
  operationId: "deleteJob",
  summary: "Cancels a job where it still runs, and deletes it with every picture",
  params: jobParams,
  response: { 204: z.null().meta({ description: "It is gone." }), ...errorResponses(notFound, 503) },
};

const SUMMARIES = {
  pause: "Begins nothing more of a job; what is being made is finished",
  resume: "Goes on with a paused job",
  cancel: "Ends a job; what is made of it stays",
};

const actionSchema = (action: keyof typeof SUMMARIES) => ({
  tags,
  operationId: `${action}Job`,
  summary: SUMMARIES[action],
  params: jobParams,
  response: { ...job, ...errorResponses(notFound, conflict, 503) },
});

const retrySchema = {
  tags,
  operationId: "retryJob",
  summary: "Makes failed items again, all of them or some",
  params: jobParams,
  body: z
    .strictObject({
      items: z
        .array(z.int().min(0))
        .min(1)
        .max(RETRIED_MAX)
        .optional()
        .describe(`a list of 1 to ${RETRIED_MAX} indexes of failed items; all of them when absent`),
    })
    .nullish()
    .meta({ id: "JobRetry" }),
  response: {
    200: z.object({ job: jobReply, items: z.int() }).meta({ id: "JobRetried", description: "How many it were." }),
    ...errorResponses(400, notFound, conflict, 503),
  },
};
