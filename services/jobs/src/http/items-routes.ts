import { Readable } from "node:stream";
import { contentDisposition, ServingError } from "@atelier/core";
import { chooseMediaType, errorResponses, type HttpApp, HttpRefusal, sentAsBytes, sentAsStream } from "@atelier/http";
import type { ObjectStore } from "@atelier/object-store";
import { z } from "zod";
import { pictureKey } from "../engine/work-item.ts";
import { ITEM_STATES, type ItemSpec, type ItemState } from "../job.ts";
import type { ItemSource, ItemStates, Jobs, JobView } from "../ports.ts";
import { CSV_TYPE, itemsCsv } from "../results/items-csv.ts";
import { manifestEntry } from "../results/manifest.ts";
import type { PictureBook } from "../results/picture-book.ts";
import { readItems } from "../results/read-items.ts";
import { callerOf } from "./caller-of.ts";
import { itemReply, itemToJson } from "./job-json.ts";
import { limitOf } from "./jobs-routes.ts";
import { jobParams, ownJob } from "./own-job.ts";

export interface ItemsRoutesParts {
  readonly jobs: Jobs;
  readonly items: ItemSource;
  readonly book: PictureBook;
  readonly objects: Pick<ObjectStore, "get" | "link">;
}

const ITEMS_MAX = 1_000;
/** Long enough for a slow connection to begin; the link says nothing of who may use it. */
const LINK_EXPIRES_MS = 15 * 60_000;
const MEDIA_TYPES = { png: "image/png", jpeg: "image/jpeg", webp: "image/webp" };

/** The pictures of a job, one by one. */
export function itemsRoutes(app: HttpApp, { jobs, items, book, objects }: ItemsRoutesParts): void {
  app.get("/v1/jobs/:id/items", { schema: listSchema }, async (request, reply) => {
    const job = ownJob(jobs, request.params.id, callerOf(request));
    const { state, limit, after } = request.query;
    const type = chooseMediaType(request.headers.accept, ["application/json", CSV_TYPE]);
    if (type === undefined) {
      throw new HttpRefusal(406, `the Accept header leaves neither application/json nor ${CSV_TYPE}`);
    }
    if (type === CSV_TYPE) {
      const lines = itemsCsv(job, { items, jobs, book }, state);
      reply.header("content-disposition", contentDisposition(`${job.record.name}.csv`));
      return reply.type(`${CSV_TYPE}; charset=utf-8`).send(Readable.from(lines, { objectMode: false }) as never);
    }
    const states = statesOf(jobs, job);
    const indexes = indexesOf(states, { state, from: (after ?? -1) + 1, max: limit + 1, size: job.record.itemCount });
    const page = indexes.slice(0, limit);
    const read = await readItems(items, job.record.id, page);
    return {
      items: read.map((item) => itemToJson(item, job.record, states)),
      next: indexes.length > limit ? page.at(-1)! : null,
    };
  });

  app.get("/v1/jobs/:id/items/:index", { schema: oneSchema }, async (request) => {
    const job = ownJob(jobs, request.params.id, callerOf(request));
    const { record } = job;
    const item = await itemOf(items, job, request.params.index);
    const states = statesOf(jobs, job);
    const entry = manifestEntry(item, { record, states, pictures: await book.of(record) });
    const { model_digest, parameters, object_key, sha256, bytes, worker, device_ms, simulated, attempts, state } =
      entry;
    const progress = states.progress(item.index);
    return {
      ...itemToJson(item, record, states),
      state,
      parameters,
      worker: worker ?? progress?.workerId ?? null,
      result:
        object_key === null
          ? null
          : {
              object_key,
              sha256: sha256!,
              bytes: bytes!,
              media_type: MEDIA_TYPES[parameters.format],
              model_digest: model_digest!,
              device_ms: device_ms!,
              attempts: attempts!,
              simulated: simulated!,
            },
    };
  });

  app.get("/v1/jobs/:id/items/:index/image", { schema: imageSchema }, async (request, reply) => {
    const job = ownJob(jobs, request.params.id, callerOf(request));
    const item = await itemOf(items, job, request.params.index);
    const state = statesOf(jobs, job).of(item.index);
    if (state !== "done") {
      throw new ServingError("NOT_FOUND", `item ${item.index} is ${state}: it has no picture`, { field: "index" });
    }
    const key = pictureKey(job.record, item);
    const link = await objects.link(key, { expiresMs: LINK_EXPIRES_MS, downloadName: item.file });
    if (link !== undefined) return reply.header("cache-control", "no-store").redirect(link, 302);
    const object = await objects.get(key);
    if (object === undefined) {
      throw new ServingError("NOT_FOUND", `the picture of item ${item.index} is not in the object store any more`);
    }
    return reply
      .type(MEDIA_TYPES[job.record.shapes[item.shape]!.format])
      .header("content-length", object.bytes)
      .header("content-disposition", contentDisposition(item.file, "inline"))
      .send(object.body as never);
  });
}

async function itemOf(items: ItemSource, { record }: JobView, index: number): Promise<ItemSpec> {
  const [item] = index < record.itemCount ? await readItems(items, record.id, [index]) : [];
  if (item !== undefined) return item;
  const message = `there is no item ${index}; the job's are 0 to ${record.itemCount - 1}`;
  throw new ServingError("NOT_FOUND", message, { field: "index" });
}

function statesOf(jobs: Pick<Jobs, "states">, { record }: JobView): ItemStates {
  const states = jobs.states(record.id);
  if (states === undefined) throw new ServingError("NOT_FOUND", `the job ${record.id} was deleted`, { field: "id" });
  return states;
}

function indexesOf(
  states: ItemStates,
  { state, from, max, size }: { state: ItemState | undefined; from: number; max: number; size: number },
): readonly number[] {
  if (state !== undefined) return states.in(state, from, max);
  return Array.from({ length: Math.max(0, Math.min(max, size - from)) }, (_, i) => from + i);
}

const tags = ["jobs"];
const notFound = [404, "There is no such job or item, or it is another tenant's."] as const;
const itemParams = jobParams.extend({
  index: z.coerce.number().int().min(0).max(1_000_000).describe("a whole number from 0 to 1000000"),
});

const listSchema = {
  tags,
  operationId: "listJobItems",
  summary: "A job's pictures: a page as JSON, or all of them as CSV",
  params: jobParams,
  querystring: z.strictObject({
    state: z.enum(ITEM_STATES).optional(),
    limit: limitOf(ITEMS_MAX, 100),
    after: z.coerce
      .number()
      .int()
      .min(0)
      .max(1_000_000)
      .optional()
      .describe("a whole number from 0 to 1000000: `next` of the page before"),
  }),
  response: {
    200: {
      description: "By index. In CSV, cells that a spreadsheet would take for a formula begin with an apostrophe.",
      content: {
        "application/json": {
          schema: z.object({ items: z.array(itemReply), next: z.int().nullable() }).meta({ id: "JobItems" }),
        },
        [CSV_TYPE]: { schema: sentAsStream(z.string()) },
      },
    },
    ...errorResponses(400, notFound, 406, 503),
  },
};

const oneSchema = {
  tags,
  operationId: "getJobItem",
  summary: "One picture of a job, with all that is known of it",
  params: itemParams,
  response: {
    200: itemReply
      .extend({
        parameters: z.object({
          width: z.int(),
          height: z.int(),
          steps: z.int(),
          guidance_scale: z.number(),
          sampler: z.string(),
          karras_sigmas: z.boolean(),
          format: z.enum(["png", "jpeg", "webp"]),
          quality: z.number().nullable(),
        }),
        worker: z.string().nullable().describe("That made it, or is at it."),
        result: z
          .object({
            object_key: z.string(),
            sha256: z.string(),
            bytes: z.int(),
            media_type: z.string(),
            model_digest: z.string(),
            device_ms: z.number(),
            attempts: z.int(),
            simulated: z.boolean().describe("No model ran: it comes from the simulated device."),
          })
          .nullable()
          .describe("Of one that is done."),
      })
      .meta({ id: "JobItemDetails" }),
    ...errorResponses(400, notFound, 503),
  },
};

const imageSchema = {
  tags,
  operationId: "getJobItemImage",
  summary: "The picture itself, or a link to it that holds for fifteen minutes",
  params: itemParams,
  response: {
    200: {
      description: "Where pictures lie in files.",
      content: Object.fromEntries(Object.values(MEDIA_TYPES).map((type) => [type, { schema: sentAsBytes }])),
    },
    302: z.null().meta({ description: "Where they lie in a bucket: `location` is the link." }),
    ...errorResponses(400, [404, "There is no such item, or it has no picture (yet)."], 503),
  },
};
