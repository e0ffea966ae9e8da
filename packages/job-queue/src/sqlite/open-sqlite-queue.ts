import type { JobQueue } from "../job-queue.ts";
import type { QueueOptions, QueueWorld } from "../open-job-queue.ts";
import { QueueFile } from "./queue-file.ts";
import { SqliteEvents } from "./sqlite-events.ts";
import { SqliteRecords } from "./sqlite-records.ts";
import { SqliteWork } from "./sqlite-work.ts";

export interface SqliteQueueOptions extends Pick<QueueOptions, "leaseMs" | "timeoutMs"> {
  readonly path: string;
}

/**
 * A queue in one SQLite file, which every process of the machine that works on it opens. Not for file systems shared over
 * a network: SQLite's locks and its shared memory do not reach across machines.
 *
 * @throws ServingError STORAGE_UNAVAILABLE where the file cannot be made, read, written or understood.
 */
export async function openSqliteQueue(
  options: SqliteQueueOptions,
  { clock }: Pick<QueueWorld, "clock">,
): Promise<JobQueue> {
  const file = new QueueFile(options.path, options.timeoutMs);
  const work = new SqliteWork(file, { clock, leaseMs: options.leaseMs });
  return {
    work,
    events: new SqliteEvents(file),
    records: new SqliteRecords(file),
    check: async () => {
      file.checkThere();
      await file.read(() => file.prepare("SELECT value FROM counters WHERE name = 'revision'").get());
    },
    onConnection: () => () => {},
    close: async () => {
      work.closing();
      await file.close();
    },
  };
}
