import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { ManualClock, type ServingError } from "@atelier/core";
import { openJobQueue, type Records } from "@atelier/job-queue";
import { openObjectStore } from "@atelier/object-store";
import { ChunkItems, Intake, type JobPreview, type Submission, type Submitted } from "../intake/index.ts";
import type { ItemShape, ItemSpec, JobRecord } from "../job.ts";
import type { Completion, JobCaller, ShapeDraft } from "../ports.ts";

export const CALLER: JobCaller = {
  tenant: "shop",
  keyId: "key1",
  role: "user",
  priority: "interactive",
  weight: 2,
  models: null,
};

export interface IntakeWorldOptions {
  readonly uploadBytesMax?: number;
  readonly itemsMax?: number;
  readonly terms?: Partial<Omit<Completion, "shapes">>;
}

/** What a test says of a submission; the rest is ordinary. */
export type Sheet = Omit<Partial<Submission>, "body"> & { readonly body: string | Uint8Array | Readable };

export type IntakeWorld = Awaited<ReturnType<typeof intakeWorld>>;

/** An intake on a real queue file and real files of objects; the gateway is a fake that knows one model, "tiny". */
export async function intakeWorld({ uploadBytesMax = 2 ** 30, itemsMax = 1_000_000, terms }: IntakeWorldOptions = {}) {
  const folder = await mkdtemp(join(tmpdir(), "atelier-intake-"));
  const clock = new ManualClock(Date.UTC(2026, 10, 23, 9));
  const objects = await openObjectStore(`file:${join(folder, "objects")}`, { clock });
  const queue = await openJobQueue(
    {
      address: `sqlite:${join(folder, "queue.db")}`,
      prefix: "ATELIER",
      replicas: 1,
      leaseMs: 30_000,
      timeoutMs: 5_000,
    },
    { clock, onProblem: () => {} },
  );
  /** What the gateway answers with, what is thrown although a job was stored, and where a record is to be removed. */
  const faults: { gateway?: ServingError; accept?: ServingError; remove?: ServingError } = {};
  const drafts: ShapeDraft[] = [];
  const items = new ChunkItems(objects);
  const jobs = {
    accept: async (record: JobRecord) => {
      await queue.records.put(`jobs.${record.id}`, JSON.stringify(record), 0);
      if (faults.accept !== undefined) throw faults.accept;
    },
  };
  const gateway = {
    complete: async (_caller: JobCaller, asked: readonly ShapeDraft[]): Promise<Completion> => {
      if (faults.gateway !== undefined) throw faults.gateway;
      drafts.push(...asked);
      const free = { pricePerDeviceHour: 3.6, currency: "EUR", imagesLeft: null, deviceMsLeft: null };
      return { shapes: asked.map(completed), ...free, ...terms };
    },
  };
  const log = { info: () => {}, warn: () => {} };
  const limits = { uploadBytesMax, itemsMax };
  const records: Records = {
    get: (key) => queue.records.get(key),
    put: (...record) => queue.records.put(...record),
    list: (prefix) => queue.records.list(prefix),
    remove: async (key) => {
      if (faults.remove !== undefined) throw faults.remove;
      await queue.records.remove(key);
    },
  };
  const newIntake = () => new Intake({ records, objects, items, jobs, gateway, clock, log, limits });
  const intake = newIntake();
  const submit = ({ body, ...said }: Sheet): Promise<Submitted> =>
    intake.submit({
      caller: CALLER,
      contentType: "text/csv",
      body: body instanceof Readable ? body : Readable.from([Buffer.from(body)]),
      options: {},
      dryRun: false,
      signal: new AbortController().signal,
      ...said,
    });
  return {
    clock,
    objects,
    queue,
    items,
    intake,
    newIntake,
    faults,
    /** What the gateway was asked to complete. */
    drafts,
    submit,
    /** The job that a sheet became, and its items. */
    accepted: async (sheet: Sheet): Promise<{ record: JobRecord; items: ItemSpec[] }> => {
      const submitted = await submit(sheet);
      if (submitted.type !== "accepted") throw new Error(`it was ${submitted.type}`);
      return { record: submitted.record, items: await collected(items.read(submitted.record.id, 0)) };
    },
    preview: async (sheet: Sheet): Promise<JobPreview> => {
      const submitted = await submit({ ...sheet, dryRun: true });
      if (submitted.type !== "preview") throw new Error(`it was ${submitted.type}`);
      return submitted.preview;
    },
    /** Everything that is stored: keys of objects, then of records. */
    stored: async (): Promise<string[]> => [
      ...(await collected(objects.list(""))).map(({ key }) => key),
      ...(await collected(queue.records.list(""))).map(({ key }) => key),
    ],
    close: async () => {
      intake.close();
      await queue.close();
      await objects.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export async function collected<T>(values: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const value of values) all.push(value);
  return all;
}

function completed(draft: ShapeDraft): Completion["shapes"][number] {
  const { model = "tiny", width = 512, height = 512, steps = 20, format = "png" } = draft;
  const refused = (field: string, message: string) => ({ ok: false, code: "INVALID_REQUEST", field, message }) as const;
  if (model !== "tiny") return { ok: false, code: "MODEL_NOT_FOUND", field: "model", message: `no model ${model}` };
  if (width % 64 !== 0 || width > 1024)
    return refused("width", `width is ${width}; it must be a multiple of 64 to 1024`);
  if (steps > 100) return refused("steps", `steps is ${steps}; it must be at most 100 for tiny`);
  const shape: ItemShape = {
    model,
    width,
    height,
    steps,
    guidanceScale: draft.guidance_scale ?? 7,
    sampler: draft.sampler ?? "dpmpp_2m",
    karrasSigmas: draft.karras_sigmas ?? false,
    format: format as ItemShape["format"],
    quality: draft.quality ?? null,
    predictedDeviceMs: steps * 50,
  };
  return { ok: true, shape };
}
