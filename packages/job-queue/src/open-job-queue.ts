import type { Clock } from "@atelier/core";
import { parseQueueAddress } from "./address.ts";
import type { JobQueue } from "./job-queue.ts";
import { openSqliteQueue } from "./sqlite/open-sqlite-queue.ts";

export interface QueueOptions {
  /** As `parseQueueAddress` reads it. */
  readonly address: string;
  /** What the names of everything kept on a NATS server begin with. An SQLite file is one queue and has no use for it. */
  readonly prefix?: string;
  /** Copies that a NATS cluster keeps. Default 1. */
  readonly replicas?: number;
  /** How long a pulled item stays its puller's without being extended. */
  readonly leaseMs: number;
  /** How long anything asked of the queue may take. */
  readonly timeoutMs: number;
}

export interface QueueWorld {
  readonly clock: Clock;
  /** Told what is wrong and needs no answer from the caller. */
  onProblem(text: string): void;
}

/** @throws ServingError STORAGE_UNAVAILABLE where it cannot be opened or reached; RangeError for a bad address. */
export async function openJobQueue(options: QueueOptions, world: QueueWorld): Promise<JobQueue> {
  const address = parseQueueAddress(options.address);
  if (address.kind === "sqlite") return openSqliteQueue({ ...options, path: address.path }, world);
  // A service that uses a file need not load what speaks to NATS.
  const { openNatsQueue } = await import("./nats/open-nats-queue.ts");
  return openNatsQueue({ ...options, ...address }, world);
}
