/** What bulk jobs stand on, for those who publish work and those who pull it. Knows nothing of what an item draws. */
export { parseQueueAddress, type QueueAddress } from "./address.ts";
export { itemId } from "./checks.ts";
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
export { openJobQueue, type QueueOptions, type QueueWorld } from "./open-job-queue.ts";
