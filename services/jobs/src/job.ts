import type { TraceContext } from "@atelier/telemetry";

/** Classes that a job's items may have: nobody waits for a job at a counter. */
export const JOB_PRIORITIES = ["standard", "bulk"] as const;
export type JobPriority = (typeof JOB_PRIORITIES)[number];

export const JOB_STATUSES = ["queued", "running", "paused", "done", "cancelled"] as const;
export type JobStatusName = (typeof JOB_STATUSES)[number];

export const ITEM_STATES = ["queued", "running", "done", "failed", "cancelled", "filtered"] as const;
export type ItemState = (typeof ITEM_STATES)[number];

/**
 * A job as it was accepted, with the few settings that may change: kept as JSON under `jobs.<id>` among the records. How
 * its items fare is in the event log; what they are is in the object store, in chunks of `CHUNK_ITEMS` lines.
 */
export interface JobRecord {
  readonly id: string;
  readonly tenant: string;
  readonly keyId: string | null;
  /** The tenant's share against others', as it was when the job was accepted. */
  readonly weight: number;
  readonly name: string;
  readonly createdAtMs: number;
  /** Pictures. */
  readonly itemCount: number;
  /** What items have in common; an item names one by its place here. */
  readonly shapes: readonly ItemShape[];
  /** Of all items, predicted when it was accepted. */
  readonly predictedDeviceMs: number;
  /** Of what was predicted, in `currency`. */
  readonly predictedCost: number;
  readonly currency: string;
  readonly pricePerDeviceHour: number;
  readonly source: JobSource;
  readonly webhook: JobWebhook | null;
  /** Milliseconds from its end to its deletion with everything it made; null: as the service keeps jobs. */
  readonly deleteAfterMs: number | null;
  readonly priority: JobPriority;
  /** What its owner or the service wants of it. Whether it runs or is done follows from its items. */
  readonly wish: "run" | "pause" | "cancel";
  /** Why the service paused it; null: its owner did. */
  readonly pausedFor: string | null;
  /** Grows whenever what is handed out of it is taken back: what is handed out later has at least this round. */
  readonly round: number;
  /** Everything of it is being removed; a restart goes on with that. */
  readonly deleting: boolean;
  /** The request that submitted it; absent from jobs that older versions took on. */
  readonly origin?: JobOrigin;
}

/** What logs and traces of a job's items go back to. */
export interface JobOrigin {
  readonly requestId: string;
  readonly trace?: TraceContext;
}

/** Everything about a picture but its prompts and its seed, with every default applied: proto's GenerationParameters. */
export interface ItemShape {
  readonly model: string;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly guidanceScale: number;
  /** As the HTTP API names it, such as "dpmpp_2m". */
  readonly sampler: string;
  readonly karrasSigmas: boolean;
  readonly format: "png" | "jpeg" | "webp";
  readonly quality: number | null;
  /** Of one picture; 0 where nobody knows. */
  readonly predictedDeviceMs: number;
}

export interface JobSource {
  readonly kind: "json" | "jsonl" | "csv";
  /** Lines or rows that items came from. */
  readonly rows: number;
  /** Those left out with `on_error=skip`: the first hundred by number and reason, and how many in all. */
  readonly skipped: readonly { readonly line: number; readonly message: string }[];
  readonly skippedCount: number;
  /** Items whose row names no seed have theirs from this one and their index. 0..2^53-1. */
  readonly seed: number;
  /** The job that it is a clone of. */
  readonly clonedFrom: string | null;
}

export interface JobWebhook {
  readonly url: string;
  /** Empty: all. */
  readonly events: readonly string[];
}

/** One picture as the sheet and the template gave it: a line of a chunk `jobs/<id>/items/<chunk>.jsonl`, as JSON. */
export interface ItemSpec {
  /** From 0; also its line in its chunk. */
  readonly index: number;
  /** Of the sheet, from 1, the header left out. */
  readonly row: number;
  /** From 1. */
  readonly variant: number;
  readonly preset: string | null;
  readonly sku: string | null;
  /** Its file's name in the download, made safe, unique within the job, with its extension. */
  readonly file: string;
  readonly prompt: string;
  readonly negativePrompt: string;
  /** 0..2^53-1. */
  readonly seed: number;
  /** Place in `JobRecord.shapes`. */
  readonly shape: number;
}

export const CHUNK_ITEMS = 1_000;
export const JOB_ITEMS_MAX = 1_000_000;

/** Object keys of a job; everything of it lies under `jobKeys(id).all`. */
export function jobKeys(id: string) {
  const all = `jobs/${id}/`;
  return {
    all,
    chunk: (chunk: number) => `${all}items/${String(chunk).padStart(6, "0")}.jsonl`,
    picture: (index: number, variant: number, extension: string) =>
      `${all}pictures/${String(index).padStart(7, "0")}-v${variant}.${extension}`,
    manifest: `${all}manifest.jsonl`,
  };
}
