/** What bulk jobs stand on, for those who publish work and those who pull it. Knows nothing of what an item draws. */
export type {
  EventLog,
  JobQueue,
  Kept,
  Lease,
  LoggedEvent,
  Pull,
  QueueDepth,
  Records,
  WorkQueue,
} from "./job-queue.ts";
