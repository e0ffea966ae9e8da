import { createHash } from "node:crypto";
import { type Canonical, type Clock, canonicalText, newId, newSeed, ServingError } from "@atelier/core";
import { readStrictly } from "@atelier/http";
import type { Records } from "@atelier/job-queue";
import type { ObjectStore } from "@atelier/object-store";
import { currentRequestId, currentSpan, type Logger } from "@atelier/telemetry";
import { delay } from "../delay.ts";
import type { ItemShape, ItemSpec, JobRecord, JobSource, JobWebhook } from "../job.ts";
import type { Gateway, ItemSource, JobCaller, Jobs } from "../ports.ts";
import { ChunkWriter } from "./chunks.ts";
import { clonedItems } from "./cloned-items.ts";
import { Expansion } from "./expansion.ts";
import { IdempotencyRecords, type KeyedWork } from "./idempotency.ts";
import { Leftovers } from "./leftovers.ts";
import { openSheet, type Sheet, sheetFormat } from "./open-sheet.ts";
import { cloneSchema, type OwnSettings, type ShapeDefaults } from "./options.ts";
import { Presets } from "./presets.ts";
import { mergedDraft, ShapeBook, type Terms } from "./shape-book.ts";
import type { CloneRequest, IntakeLimits, JobIntake, JobPreview, Submission, Submitted } from "./submission.ts";
import { uploadedBytes } from "./upload.ts";

export interface IntakeOptions {
  readonly records: Records;
  readonly objects: ObjectStore;
  readonly items: ItemSource;
  readonly jobs: Pick<Jobs, "accept">;
  readonly gateway: Pick<Gateway, "complete">;
  readonly clock: Clock;
  readonly log: Pick<Logger, "info" | "warn">;
  readonly limits: IntakeLimits;
  /** @throws ServingError INVALID_REQUEST of a webhook that will not be called. */
  readonly checkWebhook?: (webhook: JobWebhook) => Promise<void> | void;
}

const PREVIEW_ITEMS = 20;
const UNDO_AGAIN_MS = 1_000;
const SWEEP_MS = 60 * 60 * 1_000;
const DAY_MS = 86_400_000;

/** What a job comes to, once all its items are known. */
interface Expanded {
  readonly shapes: readonly ItemShape[];
  readonly items: number;
  readonly predictedDeviceMs: number;
  readonly terms: Terms;
}

/**
 * Takes sheets in: reads, expands, completes, writes chunks, and accepts the job last. Until then nothing of it counts, and
 * whatever fails removes what was written.
 */
export class Intake implements JobIntake {
  readonly presets: Presets;
  readonly #options: IntakeOptions;
  readonly #idempotency: IdempotencyRecords;
  readonly #leftovers: Leftovers;
  readonly #stop = new AbortController();
  /** Jobs that came to nothing, of which something may be stored still. */
  readonly #undoing = new Set<string>();
  #cancelSweep = () => {};

  constructor(options: IntakeOptions) {
    const { records, clock } = options;
    this.#options = options;
    this.presets = new Presets(records);
    const jobExists = async (jobId: string) => (await records.get(`jobs.${jobId}`)) !== undefined;
    this.#idempotency = new IdempotencyRecords({ records, clock, jobExists });
    this.#leftovers = new Leftovers(options);
  }

  /** Removes what killed submissions left, now and every hour. */
  async start(): Promise<void> {
    await this.#sweep();
    if (this.#stop.signal.aborted) return;
    this.#cancelSweep = this.#options.clock.after(SWEEP_MS, () => void this.start());
  }

  /** Submissions that are being read end with DRAINING. */
  close(): void {
    this.#stop.abort(new ServingError("DRAINING", "the jobs service stops"));
    this.#cancelSweep();
  }

  async submit(submission: Submission): Promise<Submitted> {
    const signal = AbortSignal.any([submission.signal, this.#stop.signal]);
    const { caller, idempotencyKey } = submission;
    if (submission.dryRun || idempotencyKey === undefined) return this.#take(submission, signal, undefined);
    const entry = await this.#idempotency.enter(caller.tenant, idempotencyKey);
    if (entry.type === "in_progress") return entry;
    if (entry.type === "used" && this.#undoing.has(entry.jobId)) return { type: "in_progress" };
    if (entry.type === "used") {
      const upload = this.#upload(submission, signal);
      for await (const _ of upload.bytes) signal.throwIfAborted();
      if (upload.digest() !== entry.digest) return { type: "key_of_another" };
      return { type: "replayed", jobId: entry.jobId };
    }
    try {
      return await this.#take(submission, signal, entry.work);
    } finally {
      entry.work.end();
    }
  }

  async clone({ caller, record, settings: asked, signal: theirs }: CloneRequest): Promise<JobRecord> {
    const signal = AbortSignal.any([theirs, this.#stop.signal]);
    const settings = readStrictly(cloneSchema, asked ?? {});
    await this.#checkSettings(caller, settings);
    const book = new ShapeBook(this.#options.gateway, caller, signal);
    const places = await clonedShapes(book, record, settings.defaults);
    const anew = settings.new_seeds === true || settings.seed !== undefined;
    const seed = anew ? (settings.seed ?? newSeed()) : record.source.seed;
    const read = this.#options.items.read(record.id, 0);
    const copied = clonedItems(read, { record, places, shapes: book.shapes, seed: anew ? seed : undefined });
    return this.#write(caller, signal, copied, (id) => {
      const { source } = record;
      return this.#record(id, caller, {
        settings: { ...settings, name: settings.name ?? `${record.name.slice(0, 190)} (copy)` },
        priority: settings.priority ?? record.priority,
        source: { ...source, seed, clonedFrom: record.id },
        expanded: {
          shapes: book.shapes,
          items: record.itemCount,
          predictedDeviceMs: copied.predictedDeviceMs,
          terms: book.terms!,
        },
      });
    });
  }

  async #take(submission: Submission, signal: AbortSignal, keyed: KeyedWork | undefined): Promise<Submitted> {
    const { caller } = submission;
    const upload = this.#upload(submission, signal);
    const sheet = await openSheet(submission, upload.bytes);
    const { options } = sheet;
    await this.#checkSettings(caller, options);
    const book = new ShapeBook(this.#options.gateway, caller, signal);
    const expansion = await this.#expansion(caller, sheet, book);
    const expanded = (): Expanded => ({
      shapes: book.shapes,
      items: expansion.items,
      predictedDeviceMs: expansion.predictedDeviceMs,
      terms: book.terms!,
    });
    const items = checkedItems(expansion.of(sheet.rows), expansion);
    if (submission.dryRun) {
      const first = await firstOf(items, PREVIEW_ITEMS);
      return {
        type: "preview",
        preview: previewOf({ name: this.#name(options), expansion, expanded: expanded(), first }),
      };
    }
    const record = await this.#write(caller, signal, { items }, async (id) => {
      checkQuota(expanded());
      await keyed?.bind({ jobId: id, digest: upload.digest() });
      const { rows, skipped, skippedCount, seed } = expansion;
      return this.#record(id, caller, {
        settings: options,
        priority: options.priority ?? "bulk",
        source: { kind: sheet.kind, rows, skipped, skippedCount, seed, clonedFrom: null },
        expanded: expanded(),
      });
    });
    return { type: "accepted", record };
  }

  async #expansion(caller: JobCaller, { options, lineName }: Sheet, shapes: ShapeBook): Promise<Expansion> {
    const template = options.template ?? {};
    return new Expansion({
      template,
      presets: await this.presets.ofTemplate(caller.tenant, template.presets ?? []),
      onError: options.on_error ?? "reject",
      seed: template.seed ?? newSeed(),
      itemsMax: this.#options.limits.itemsMax,
      shapes,
      lineName,
    });
  }

  /** Chunks first, the record last; `recordOf` is asked once all items were read, and may still refuse. */
  async #write(
    caller: JobCaller,
    signal: AbortSignal,
    source: { readonly items: AsyncIterable<readonly ItemSpec[]> },
    recordOf: (id: string) => Promise<JobRecord> | JobRecord,
  ): Promise<JobRecord> {
    const { objects, jobs, log } = this.#options;
    const id = newId("job");
    const writer = new ChunkWriter(objects, id, signal);
    let accepting = false;
    await this.#leftovers.begin(id);
    try {
      for await (const batch of source.items) await writer.write(batch);
      await writer.end();
      const record = await recordOf(id);
      signal.throwIfAborted();
      accepting = true;
      await jobs.accept(record);
      await this.#leftovers.end(id, { settled: true }).catch((error: unknown) => {
        log.warn({ job: id, error }, "the mark of a submission stays until the next sweep");
      });
      log.info({ job: id, tenant: caller.tenant, items: record.itemCount }, "a job was accepted");
      return record;
    } catch (error) {
      await this.#undo(id, writer, accepting);
      throw error;
    }
  }

  /** Now, or as soon as the storage answers again: until then its idempotency key is in progress. */
  async #undo(id: string, writer: ChunkWriter, accepting: boolean): Promise<void> {
    if (await this.#isUndone(id, writer, accepting)) return;
    this.#undoing.add(id);
    void this.#undoLater(id, writer, accepting);
  }

  async #undoLater(id: string, writer: ChunkWriter, accepting: boolean): Promise<void> {
    const { clock, log } = this.#options;
    do {
      await delay(clock, UNDO_AGAIN_MS, this.#stop.signal);
      // What is left then is found by a sweep, and what was accepted by the next start.
      if (this.#stop.signal.aborted) return;
    } while (!(await this.#isUndone(id, writer, accepting)));
    this.#undoing.delete(id);
    log.info({ job: id }, "what a refused submission wrote is gone");
  }

  /** Of a job that may have been accepted although nobody heard so, the record goes first. */
  async #isUndone(id: string, writer: ChunkWriter, accepting: boolean): Promise<boolean> {
    const { records, log } = this.#options;
    try {
      if (accepting) await records.remove(`jobs.${id}`);
      await writer.discard();
      await this.#leftovers.end(id, { settled: true });
      return true;
    } catch (error) {
      if (!this.#undoing.has(id)) log.warn({ job: id, error }, "what a refused submission wrote stays for a while");
      await this.#leftovers.end(id, { settled: false });
      return false;
    }
  }

  #upload(submission: Submission, signal: AbortSignal) {
    const { body, contentLength, contentType, options } = submission;
    const hash = createHash("sha256");
    hash.update(`${canonicalText((options ?? {}) as Canonical)}\n${sheetFormat(contentType, options)}\n`);
    const { uploadBytesMax: bytesMax } = this.#options.limits;
    const bytes = uploadedBytes(body, { bytesMax, contentLength, hash, signal });
    return { bytes, digest: () => `sha256:${hash.digest("hex")}` };
  }

  /** @throws ServingError FORBIDDEN, INVALID_REQUEST. */
  async #checkSettings(caller: JobCaller, { priority, webhook }: OwnSettings): Promise<void> {
    if (priority === "standard" && caller.priority === "bulk") {
      const message = `priority is "standard", and this key may ask for "bulk" at most`;
      throw new ServingError("FORBIDDEN", message, { field: "priority" });
    }
    if (webhook != null) await this.#options.checkWebhook?.({ url: webhook.url, events: webhook.events ?? [] });
  }

  #name({ name }: OwnSettings): string {
    return name ?? `job of ${new Date(this.#options.clock.nowMs()).toISOString().slice(0, 16).replace("T", " ")}`;
  }

  #record(
    id: string,
    caller: JobCaller,
    job: {
      readonly settings: OwnSettings;
      readonly priority: JobRecord["priority"];
      readonly source: JobSource;
      readonly expanded: Expanded;
    },
  ): JobRecord {
    const { settings, priority, source, expanded } = job;
    const { webhook, delete_after_days: days } = settings;
    return {
      id,
      tenant: caller.tenant,
      keyId: caller.keyId,
      weight: caller.weight,
      name: this.#name(settings),
      createdAtMs: this.#options.clock.nowMs(),
      itemCount: expanded.items,
      shapes: expanded.shapes,
      predictedDeviceMs: expanded.predictedDeviceMs,
      predictedCost: costOf(expanded),
      currency: expanded.terms.currency,
      pricePerDeviceHour: expanded.terms.pricePerDeviceHour,
      source,
      webhook: webhook == null ? null : { url: webhook.url, events: webhook.events ?? [] },
      deleteAfterMs: days == null ? null : Math.round(days * DAY_MS),
      priority,
      wish: "run",
      pausedFor: null,
      round: 0,
      deleting: false,
      ...originOfNow(),
    };
  }

  async #sweep(): Promise<void> {
    const { log } = this.#options;
    try {
      const removed = await this.#leftovers.sweep();
      await this.#idempotency.sweep();
      if (removed > 0) log.info({ removed }, "removed what unfinished submissions had left");
    } catch (error) {
      log.warn({ error }, "looking for unfinished submissions failed; another try follows in an hour");
    }
  }
}

/** Nothing where no request is at work. */
function originOfNow(): Pick<JobRecord, "origin"> {
  const requestId = currentRequestId();
  if (requestId === undefined) return {};
  const { context: trace } = currentSpan();
  return { origin: { requestId, ...(trace !== undefined && { trace }) } };
}

/** Every shape of a job again, with some of it changed. Gives their places. @throws ServingError where one is refused. */
async function clonedShapes(
  book: ShapeBook,
  record: JobRecord,
  defaults: ShapeDefaults | undefined,
): Promise<readonly number[]> {
  const drafts = record.shapes.map((shape) => {
    const { guidanceScale, karrasSigmas, quality, predictedDeviceMs: _, ...rest } = shape;
    const losesQuality = quality === null || (defaults?.format !== undefined && defaults.format === "png");
    const before = { ...rest, guidance_scale: guidanceScale, karras_sigmas: karrasSigmas };
    return mergedDraft(before, losesQuality ? undefined : { quality }, defaults);
  });
  await book.complete(new Map(drafts.map(({ key, draft }) => [key, draft])));
  return drafts.map(({ key }) => {
    const completed = book.of(key);
    if (completed?.ok === true) return completed.place;
    throw new ServingError("INVALID_REQUEST", completed?.message ?? "a shape is refused", {
      field: completed?.field == null ? undefined : `defaults.${completed.field}`,
    });
  });
}

/** @throws ServingError INVALID_REQUEST at its end, where nothing came. */
async function* checkedItems(
  items: AsyncIterable<readonly ItemSpec[]>,
  expansion: Expansion,
): AsyncIterable<readonly ItemSpec[]> {
  yield* items;
  if (expansion.items > 0) return;
  const { skipped, skippedCount, rows } = expansion;
  const [first] = skipped;
  const message =
    first === undefined
      ? "the sheet has no rows"
      : `none of the ${rows} rows is good; ${skippedCount} were left out, the first on line ${first.line}: ${first.message}`;
  throw new ServingError("INVALID_REQUEST", message, { field: "sheet" });
}

async function firstOf(batches: AsyncIterable<readonly ItemSpec[]>, max: number): Promise<readonly ItemSpec[]> {
  const first: ItemSpec[] = [];
  for await (const batch of batches) first.push(...batch.slice(0, max - first.length));
  return first;
}

/** @throws ServingError QUOTA_EXCEEDED saying what it takes and what is left. */
function checkQuota({ items, predictedDeviceMs, terms }: Expanded): void {
  const { imagesLeft, deviceMsLeft } = terms;
  if (imagesLeft !== null && items > imagesLeft) {
    const message = `the job takes ${items} pictures, and ${Math.max(0, imagesLeft)} are left of this month's`;
    throw new ServingError("QUOTA_EXCEEDED", message, { field: "images_per_month" });
  }
  if (deviceMsLeft !== null && predictedDeviceMs > deviceMsLeft) {
    const left = seconds(Math.max(0, deviceMsLeft));
    const message = `the job is predicted to take ${seconds(predictedDeviceMs)} device seconds, and ${left} are left of this month's`;
    throw new ServingError("QUOTA_EXCEEDED", message, { field: "device_seconds_per_month" });
  }
}

function seconds(ms: number): number {
  return Math.round(ms / 100) / 10;
}

function costOf({ predictedDeviceMs, terms }: Expanded): number {
  return (predictedDeviceMs / 3_600_000) * terms.pricePerDeviceHour;
}

function fits(expanded: Expanded): boolean {
  try {
    checkQuota(expanded);
    return true;
  } catch {
    return false;
  }
}

function previewOf({
  name,
  expansion,
  expanded,
  first,
}: {
  readonly name: string;
  readonly expansion: Expansion;
  readonly expanded: Expanded;
  readonly first: readonly ItemSpec[];
}): JobPreview {
  const { terms, predictedDeviceMs, shapes } = expanded;
  const { rows, items, skipped, skippedCount, notes } = expansion;
  return {
    name,
    rows,
    items,
    first: first.map((item) => ({ ...item, shapeOf: shapes[item.shape]! })),
    predictedDeviceMs,
    predictedCost: costOf(expanded),
    currency: terms.currency,
    imagesLeft: terms.imagesLeft,
    deviceMsLeft: terms.deviceMsLeft,
    fits: fits(expanded),
    skipped,
    skippedCount,
    notes,
  };
}
