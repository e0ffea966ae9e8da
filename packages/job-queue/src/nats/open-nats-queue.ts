import { ServingError } from "@atelier/core";
import type { JobQueue } from "../job-queue.ts";
import type { QueueOptions, QueueWorld } from "../open-job-queue.ts";

export interface NatsQueueOptions extends QueueOptions {
  readonly servers: readonly string[];
  readonly tls: boolean;
  readonly credentials: { readonly user: string; readonly password: string } | undefined;
}

/** Not written yet: there is only the queue in a file. */
export async function openNatsQueue(options: NatsQueueOptions, _world: QueueWorld): Promise<JobQueue> {
  throw new ServingError("STORAGE_UNAVAILABLE", `no adapter for ${options.servers.join(",")} yet`);
}
