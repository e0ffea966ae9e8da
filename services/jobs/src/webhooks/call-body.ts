import type { JobView } from "../ports.ts";
import type { WebhookEvent } from "./hook-url.ts";

/** An item that failed for good. */
export interface FailedItem {
  readonly index: number;
  readonly code: string;
  readonly message: string;
  readonly attempts: number;
}

/** The body of a call: what happened, when, and how the job stands. It holds no picture and no prompt. */
export function callBody(
  event: WebhookEvent,
  { job, atMs, item }: { readonly job: JobView; readonly atMs: number; readonly item?: FailedItem },
): string {
  return JSON.stringify({
    type: event,
    timestamp: new Date(atMs).toISOString(),
    data: { job: summaryOf(job), ...(item !== undefined && { item }) },
  });
}

function summaryOf(job: JobView) {
  const { record } = job;
  return {
    id: record.id,
    name: record.name,
    status: job.status,
    held_for: job.heldFor,
    item_count: record.itemCount,
    counts: job.counts,
    items_per_minute: job.itemsPerMinute,
    eta_ms: job.etaMs,
    spent_device_ms: job.spentDeviceMs,
    spent_cost: job.spentCost,
    currency: record.currency,
    created_at: new Date(record.createdAtMs).toISOString(),
    started_at: momentOf(job.startedAtMs),
    ended_at: momentOf(job.endedAtMs),
    sequence: job.sequence,
  };
}

const momentOf = (atMs: number | null) => (atMs === null ? null : new Date(atMs).toISOString());
