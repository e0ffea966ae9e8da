import { z } from "zod";
import type { JobPreview } from "../intake/index.ts";
import { ITEM_STATES, type ItemSpec, JOB_PRIORITIES, JOB_STATUSES, type JobRecord } from "../job.ts";
import type { ItemStates, JobView } from "../ports.ts";

/** Jobs, items and previews as the HTTP API, the events and the webhooks show them. */

const moment = z.iso.datetime();
const amount = z.object({
  device_seconds: z.number().describe("Of a whole device."),
  cost: z.number(),
  currency: z.string(),
});
const skipped = z.array(z.object({ line: z.int(), message: z.string() }));

export const jobReply = z
  .object({
    id: z.string(),
    name: z.string(),
    tenant: z.string(),
    status: z.enum(JOB_STATUSES),
    paused_for: z.string().nullable().describe("Why the service paused it; null: its owner did, or it is not paused."),
    held_for: z.string().nullable().describe("Why none of its items are handed out although nobody paused it."),
    priority: z.enum(JOB_PRIORITIES),
    item_count: z.int(),
    counts: z.record(z.enum(ITEM_STATES), z.int()),
    items_per_minute: z.number(),
    eta_ms: z.number().nullable().describe("Until its end as it goes now; null where nobody can tell."),
    predicted: amount,
    spent: amount,
    source: z.object({
      kind: z.string(),
      rows: z.int(),
      seed: z.int().describe("The template's, or the one that was drawn: with it the same sheet gives the same items."),
      cloned_from: z.string().nullable(),
    }),
    skipped_count: z.int().describe("Rows left out with on_error=skip."),
    skipped: skipped.describe("The first hundred of them."),
    webhook: z.object({ url: z.string(), events: z.array(z.string()) }).nullable(),
    created_at: moment,
    started_at: moment.nullable(),
    ended_at: moment.nullable().describe("Once everything of it is there, its manifest as well."),
    sequence: z.int().describe("Of the newest event that it counts."),
  })
  .meta({ id: "Job", description: "A bulk job." });
export type JobJson = z.infer<typeof jobReply>;

export function jobToJson(job: JobView): JobJson {
  const { record } = job;
  return {
    id: record.id,
    name: record.name,
    tenant: record.tenant,
    status: job.status,
    paused_for: record.pausedFor,
    held_for: job.heldFor,
    priority: record.priority,
    item_count: record.itemCount,
    counts: job.counts,
    items_per_minute: job.itemsPerMinute,
    eta_ms: job.etaMs,
    predicted: amountOf(record.predictedDeviceMs, record.predictedCost, record),
    spent: amountOf(job.spentDeviceMs, job.spentCost, record),
    source: {
      kind: record.source.kind,
      rows: record.source.rows,
      seed: record.source.seed,
      cloned_from: record.source.clonedFrom,
    },
    skipped_count: record.source.skippedCount,
    skipped: [...record.source.skipped],
    webhook: record.webhook && { url: record.webhook.url, events: [...record.webhook.events] },
    created_at: momentOf(record.createdAtMs),
    started_at: momentOrNull(job.startedAtMs),
    ended_at: momentOrNull(job.endedAtMs),
    sequence: job.sequence,
  };
}

export const itemReply = z
  .object({
    index: z.int(),
    row: z.int().describe("Of the sheet, from 1, the header left out."),
    variant: z.int(),
    preset: z.string().nullable(),
    sku: z.string().nullable(),
    file: z.string(),
    state: z.enum(ITEM_STATES),
    prompt: z.string(),
    negative_prompt: z.string(),
    seed: z.int(),
    model: z.string(),
    width: z.int(),
    height: z.int(),
    steps: z.int(),
    progress: z.object({ steps_done: z.int(), steps_total: z.int() }).nullable().describe("Of a running one."),
    error: z.object({ code: z.string(), message: z.string(), attempts: z.int() }).nullable(),
  })
  .meta({ id: "JobItem" });
export type ItemJson = z.infer<typeof itemReply>;

export function itemToJson(item: ItemSpec, record: JobRecord, states: ItemStates): ItemJson {
  const { model, width, height, steps } = record.shapes[item.shape]!;
  const progress = states.progress(item.index);
  const reason = states.reason(item.index);
  return {
    index: item.index,
    row: item.row,
    variant: item.variant,
    preset: item.preset,
    sku: item.sku,
    file: item.file,
    state: states.of(item.index),
    prompt: item.prompt,
    negative_prompt: item.negativePrompt,
    seed: item.seed,
    model,
    width,
    height,
    steps,
    progress: progress === undefined ? null : { steps_done: progress.stepsDone, steps_total: progress.stepsTotal },
    error: reason === undefined ? null : { code: reason.code, message: reason.message, attempts: reason.attempts },
  };
}

export const previewReply = z
  .object({
    dry_run: z.literal(true),
    name: z.string(),
    rows: z.int(),
    item_count: z.int(),
    predicted: amount,
    eta_ms: z.number().nullable(),
    images_left: z.int().nullable().describe("Of the tenant's month, before this job; null: without limit."),
    fits: z.boolean().describe("Whether it would be accepted with what is left."),
    skipped_count: z.int(),
    skipped,
    notes: z.array(z.string()).describe("What is allowed but may not be meant, such as empty cells in a prompt."),
    items: z
      .array(
        z.object({
          index: z.int(),
          row: z.int(),
          variant: z.int(),
          preset: z.string().nullable(),
          sku: z.string().nullable(),
          file: z.string(),
          prompt: z.string(),
          negative_prompt: z.string(),
          seed: z.int(),
          model: z.string(),
          width: z.int(),
          height: z.int(),
          steps: z.int(),
        }),
      )
      .describe("The first ones."),
  })
  .meta({ id: "JobPreview", description: "What a submission would come to. Nothing of it is stored." });
export type PreviewJson = z.infer<typeof previewReply>;

/** `etaMs`: until its end if it were submitted now; null where nobody can tell. */
export function previewToJson(preview: JobPreview, etaMs: number | null): PreviewJson {
  return {
    dry_run: true,
    name: preview.name,
    rows: preview.rows,
    item_count: preview.items,
    predicted: amountOf(preview.predictedDeviceMs, preview.predictedCost, preview),
    eta_ms: etaMs,
    images_left: preview.imagesLeft,
    fits: preview.fits,
    skipped_count: preview.skippedCount,
    skipped: [...preview.skipped],
    notes: [...preview.notes],
    items: preview.first.map((item) => ({
      index: item.index,
      row: item.row,
      variant: item.variant,
      preset: item.preset,
      sku: item.sku,
      file: item.file,
      prompt: item.prompt,
      negative_prompt: item.negativePrompt,
      seed: item.seed,
      model: item.shapeOf.model,
      width: item.shapeOf.width,
      height: item.shapeOf.height,
      steps: item.shapeOf.steps,
    })),
  };
}

const amountOf = (deviceMs: number, cost: number, { currency }: { readonly currency: string }) => ({
  device_seconds: deviceMs / 1_000,
  cost,
  currency,
});
const momentOf = (atMs: number) => new Date(atMs).toISOString();
const momentOrNull = (atMs: number | null) => (atMs === null ? null : momentOf(atMs));
