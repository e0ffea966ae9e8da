import type { DeadLetter, ItemProgress, JobEvent, PriorityClass, WorkItem } from "@atelier/proto";

/**
 * What bulk jobs stand on: NATS JetStream, or one SQLite file on one machine. Whatever was accepted (a promise resolved)
 * survives kill -9 of every process, ours and the server's.
 *
 * Everything rejects with ServingError STORAGE_UNAVAILABLE where the queue cannot be reached, does not answer in time, is
 * full, or lacks a stream that somebody deleted; its message says which.
 */
export interface JobQueue {
  readonly work: WorkQueue;
  readonly events: EventLog;
  readonly records: Records;
  /** Whether all of it answers now: resolves, or rejects with what is wrong. */
  check(): Promise<void>;
  /** Told when the connection is lost (with why) and when it is back (undefined). Never of SQLite. */
  onConnection(listener: (lost: string | undefined) => void): () => void;
  close(): Promise<void>;
}

/** Items on their way to the workers. Both ends: `services/jobs` publishes, workers pull. */
export interface WorkQueue {
  /** Resolves once all are stored. An item of one job, index and round is stored once, however often it is published. */
  publish(items: readonly WorkItem[]): Promise<void>;
  /**
   * Takes back everything of the job that no worker holds. With `stop` those who hold some are told to stop working on it
   * as well: their leases are lost, at once where they can be reached, and otherwise when they next extend.
   */
  withdraw(jobId: string, options?: { readonly stop: boolean }): Promise<void>;
  /** What waits and what is held, by class and model. */
  depths(): Promise<readonly QueueDepth[]>;
  /** Dead letters in the order that they came in, of one job or of all. */
  deadLetters(jobId?: string): AsyncIterable<DeadLetter>;
  /** What is not there is removed already. */
  removeDeadLetters(jobId: string, itemIndexes?: readonly number[]): Promise<void>;
  /** Hears how far items are. Some reports are lost. */
  onProgress(listener: (progress: ItemProgress) => void): () => void;
  /** Called when the work stream was found deleted and was made anew: what it held has to be published again. */
  onLost(listener: () => void): () => void;

  /**
   * Up to `max` items of one class and model, oldest first; none where there is nothing within `waitMs`. Each stays ours
   * for the lease time unless it is extended, and is delivered again after that.
   */
  pull(ask: Pull): Promise<readonly Lease[]>;
}

export interface Pull {
  readonly priorityClass: PriorityClass;
  /** Id of the model. */
  readonly model: string;
  readonly max: number;
  readonly waitMs: number;
  readonly signal?: AbortSignal;
}

/** An item that this worker has for now. One of `ack`, `release` or `bury` ends it; afterwards they do nothing. */
export interface Lease {
  readonly item: WorkItem;
  /** Deliveries that count, this one included: those that were released with `forgiven` do not. From 1. */
  readonly attempt: number;
  /** It was delivered before, whether that counts or not: something of it may be there already. */
  readonly redelivered: boolean;
  /** How long it is ours without being extended. */
  readonly leaseMs: number;
  /** Aborted with a ServingError once the item is not ours any more: it ran out, or the job was withdrawn. */
  readonly lost: AbortSignal;
  /** Ours for another lease time from now. Where the queue cannot be reached the lease runs out, and `lost` says so. */
  extend(): Promise<void>;
  /** Tells whoever listens; may be dropped. */
  report(progress: Omit<ItemProgress, "$typeName" | "jobId" | "itemIndex" | "round">): void;
  /** Done: it is never delivered again. Resolves once that is stored. */
  ack(): Promise<void>;
  /** Somebody else's turn, after `delayMs`. `forgiven`: it was no fault of the item's, and does not count as an attempt. */
  release(options?: { readonly delayMs?: number; readonly forgiven?: boolean }): Promise<void>;
  /** Moves it among the dead letters. Resolves once it lies there and is out of the queue. */
  bury(reason: { readonly code: string; readonly message: string; readonly workerId: string }): Promise<void>;
}

export interface QueueDepth {
  readonly priorityClass: PriorityClass;
  readonly model: string;
  readonly waiting: number;
  readonly held: number;
  /** Milliseconds since the oldest that waits was published; 0 where none waits. */
  readonly oldestMs: number;
}

/** What happened to jobs, in one order for all readers. */
export interface EventLog {
  /** Resolves once stored. The same `id` again soon is dropped; much later it may not be, so that readers skip repeats. */
  append(event: JobEvent, id: string): Promise<void>;
  /** The past of one job, oldest first, from after `afterSequence` (0: from the start). */
  read(jobId: string, afterSequence?: number): AsyncIterable<LoggedEvent>;
  /** Everything of all jobs from after `afterSequence`, and then what comes, in order, until the signal. In batches. */
  follow(afterSequence: number, signal: AbortSignal): AsyncIterable<readonly LoggedEvent[]>;
  /** The newest event's number; 0 where there is none. */
  lastSequence(): Promise<number>;
  /** Forgets a job. */
  remove(jobId: string): Promise<void>;
}

export interface LoggedEvent {
  /** Grows over all jobs; never given twice. */
  readonly sequence: number;
  readonly event: JobEvent;
}

/** Small values under names, each with a revision: job records, webhooks, presets. */
export interface Records {
  get(key: string): Promise<Kept | undefined>;
  /**
   * Gives the new revision. `expected`: the revision that it must have now, 0 that there must be none.
   * @throws ServingError CONFLICT where it is another.
   */
  put(key: string, value: string, expected?: number): Promise<number>;
  remove(key: string): Promise<void>;
  /** Every record whose key begins with `prefix`, in no order. */
  list(prefix: string): AsyncIterable<Kept>;
}

export interface Kept {
  /** Letters, digits, "-", "_", and "." between parts; 256 characters at most. */
  readonly key: string;
  /** At most 512 KiB. */
  readonly value: string;
  readonly revision: number;
}
