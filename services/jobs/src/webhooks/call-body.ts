import { jobToJson } from "../http/job-json.ts";
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
  const { skipped: _skipped, webhook: _webhook, ...summary } = jobToJson(job);
  return JSON.stringify({
    type: event,
    timestamp: new Date(atMs).toISOString(),
    data: { job: summary, ...(item !== undefined && { item }) },
  });
}
