import { Readable } from "node:stream";
import { contentDisposition } from "@atelier/core";
import { errorResponses, type HttpApp, sentAsBytes, sentAsStream } from "@atelier/http";
import { z } from "zod";
import type { Jobs } from "../ports.ts";
import { type ArchiveOptions, archiveOf } from "../results/archive.ts";
import { MANIFEST_TYPE, type Manifest } from "../results/manifest.ts";
import { callerOf } from "./caller-of.ts";
import { jobParams, ownJob } from "./own-job.ts";

export interface ResultsRoutesParts extends Omit<ArchiveOptions, "manifest"> {
  readonly jobs: Jobs;
  readonly manifest: Manifest;
}

/** All that a job made, in one piece. */
export function resultsRoutes(app: HttpApp, parts: ResultsRoutesParts): void {
  const { jobs, manifest } = parts;
  app.get("/v1/jobs/:id/manifest", { schema: manifestSchema }, async (request, reply) => {
    const job = ownJob(jobs, request.params.id, callerOf(request));
    reply.header("content-disposition", contentDisposition(`${job.record.name}.jsonl`)).type(MANIFEST_TYPE);
    const written = await manifest.written(job);
    if (written !== undefined) return reply.header("content-length", written.bytes).send(written.body as never);
    return reply.send(streamOf(manifest.live(job)) as never);
  });

  app.get("/v1/jobs/:id/archive", { schema: archiveSchema }, async (request, reply) => {
    const job = ownJob(jobs, request.params.id, callerOf(request));
    reply.header("content-disposition", contentDisposition(`${job.record.name}.zip`)).type("application/zip");
    return reply.send(streamOf(archiveOf(job, parts)) as never);
  });
}

/** One part ahead of its reader, whatever its size. */
const streamOf = (parts: AsyncIterable<Buffer>): Readable =>
  Readable.from(parts, { objectMode: false, highWaterMark: 1 });

const tags = ["jobs"];
const notFound = [404, "There is no such job, or it is another tenant's."] as const;

const manifestSchema = {
  tags,
  operationId: "getJobManifest",
  summary: "A line of JSON for each picture: prompts, seed, parameters, digests, file",
  params: jobParams,
  response: {
    200: {
      description: "Of a job that runs, as it is now.",
      content: { [MANIFEST_TYPE]: { schema: sentAsStream(z.string()) } },
    },
    ...errorResponses(notFound, 503),
  },
};

const archiveSchema = {
  tags,
  operationId: "getJobArchive",
  summary: "A ZIP of the pictures made so far, and their manifest",
  params: jobParams,
  querystring: z.strictObject({
    state: z.literal("done").optional().describe("done, which is all that an archive has"),
  }),
  response: {
    200: {
      description: "Made while it is read. One that breaks off is not whole: it can be asked for again.",
      content: { "application/zip": { schema: sentAsBytes } },
    },
    ...errorResponses(400, notFound, 503),
  },
};
