import { createHash } from "node:crypto";
import type { JobOrigin } from "../job.ts";
import type { Attempt } from "./call-receiver.ts";
import type { WebhookEvent } from "./hook-url.ts";

/** A call that has to be made, or was: kept as JSON among the records until some days after its end. */
export interface Delivery {
  /** Also the call's `webhook-id`: the same at every attempt, so that receivers can tell a repetition. */
  readonly id: string;
  readonly jobId: string;
  readonly tenant: string;
  readonly event: WebhookEvent;
  readonly url: string;
  /** The whole body, as it is signed. */
  readonly body: string;
  readonly createdAtMs: number;
  readonly status: DeliveryStatus;
  /** When it is to be tried next; null once it has ended. */
  readonly nextAtMs: number | null;
  readonly attemptCount: number;
  /** When it was last asked for: at first when it was made, then whenever somebody wanted it again. It has a day from then. */
  readonly askedAtMs: number;
  /** Attempts since then. */
  readonly tries: number;
  /** The newest, at most `ATTEMPTS_KEPT`. */
  readonly attempts: readonly Attempt[];
  /** Of its job; absent where that has none. */
  readonly origin?: JobOrigin;
}

export const DELIVERY_STATUSES = ["pending", "delivered", "failed", "stopped"] as const;
/** Failed: given up after a day. Stopped: the receiver wanted no more, or the job is gone. */
export type DeliveryStatus = (typeof DELIVERY_STATUSES)[number];

export const ATTEMPTS_KEPT = 20;

const HASH_CHARS = 16;

/**
 * The id of what `what` of a job tells, such as "item.failed 1234". It follows from these, so that what is found to be
 * told again after a crash is the same delivery. It holds the job's own, so that its record is found by it.
 */
export function deliveryId(jobId: string, what: string): string {
  const hash = createHash("sha256").update(`${jobId} ${what}`).digest("base64url").slice(0, HASH_CHARS);
  return `msg_${jobId.replace(/^job_/, "")}_${hash}`;
}

/** The job whose delivery `id` names; undefined where it names none. */
export function jobOfDelivery(id: string): string | undefined {
  const [, job] = new RegExp(`^msg_([A-Za-z0-9_-]{1,64})_[A-Za-z0-9_-]{${HASH_CHARS}}$`).exec(id) ?? [];
  return job === undefined ? undefined : `job_${job}`;
}
