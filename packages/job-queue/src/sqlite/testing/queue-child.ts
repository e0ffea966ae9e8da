/** A process that works on a queue's file until it is killed: `queue-child.ts writer|consumer|filler PATH LEASE_MS`. */
import { systemClock } from "@atelier/core";
import { JobEventSchema, PriorityClass, type WorkItem, WorkItemSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import type { JobQueue } from "../../job-queue.ts";
import { openSqliteQueue } from "../open-sqlite-queue.ts";

/** Sent once the queue has promised it. */
export type ChildNews =
  | { readonly promised: "item" | "event"; readonly index: number }
  | { readonly failed: string; readonly code: string | undefined }
  | { readonly ready: true };

export function numberedItem(itemIndex: number, words = ""): WorkItem {
  return create(WorkItemSchema, {
    jobId: "a",
    itemIndex,
    parameters: { model: "m", prompt: words },
    order: { priorityClass: PriorityClass.BULK },
  });
}

export function numberedEvent(itemIndex: number) {
  return create(JobEventSchema, { jobId: "a", event: { case: "outcome", value: { itemIndex } } });
}

/** Publishes an item and logs an event with its number, many at a time. */
async function write(queue: JobQueue): Promise<never> {
  for (let index = await queue.events.lastSequence(); ; index += 20) {
    await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        await queue.work.publish([numberedItem(index + i)]);
        tell({ promised: "item", index: index + i });
        await queue.events.append(numberedEvent(index + i), `a.${index + i}.0`);
        tell({ promised: "event", index: index + i });
      }),
    );
  }
}

/** Does as a worker: pulls, logs the outcome, acknowledges. */
async function consume(queue: JobQueue): Promise<never> {
  for (;;) {
    const leases = await queue.work.pull({ priorityClass: PriorityClass.BULK, model: "m", max: 8, waitMs: 1_000 });
    for (const lease of leases) {
      await queue.events.append(numberedEvent(lease.item.itemIndex), `a.${lease.item.itemIndex}.0`);
      await lease.ack();
      tell({ promised: "event", index: lease.item.itemIndex });
    }
  }
}

/** Publishes large items until there is no room for more. */
async function fill(queue: JobQueue): Promise<void> {
  for (let index = 0; ; index += 1) {
    await queue.work.publish([numberedItem(index, "x".repeat(20_000))]);
    tell({ promised: "item", index });
  }
}

function tell(news: ChildNews): void {
  process.send?.(news);
}

if (process.send !== undefined && process.argv[1] === import.meta.filename) {
  const [role, path, leaseMs] = process.argv.slice(2);
  try {
    const queue = await openSqliteQueue(
      { path: path!, leaseMs: Number(leaseMs), timeoutMs: 5_000 },
      { clock: systemClock },
    );
    tell({ ready: true });
    if (role === "writer") await write(queue);
    if (role === "consumer") await consume(queue);
    if (role === "filler") await fill(queue);
    await queue.close();
  } catch (error) {
    tell({ failed: (error as Error).message, code: (error as { code?: string }).code });
  }
  process.disconnect?.();
}
