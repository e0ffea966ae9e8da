import { RetentionPolicy, StorageType, type StreamConfig } from "@nats-io/jetstream";
import { REPEATS_KNOWN_MS } from "../checks.ts";
import type { JobQueue } from "../job-queue.ts";
import type { QueueOptions, QueueWorld } from "../open-job-queue.ts";
import { type NatsNames, natsNames } from "./names.ts";
import { NatsEvents } from "./nats-events.ts";
import { type LinkOptions, NatsLink } from "./nats-link.ts";
import { NatsRecords } from "./nats-records.ts";
import { NatsWork } from "./nats-work.ts";
import { WorkStream } from "./work-stream.ts";

export type NatsQueueOptions = Omit<QueueOptions, "address"> & Omit<LinkOptions, "timeoutMs">;

const DEFAULT_PREFIX = "ATELIER";
/** Longer than an item is tried. */
const FORGIVEN_KEPT_MS = 7 * 86_400_000;

/**
 * A queue on a NATS server with JetStream, or a cluster of them: streams in files, made where there are none.
 *
 * @throws ServingError STORAGE_UNAVAILABLE where it cannot be reached, or has no JetStream.
 */
export async function openNatsQueue(options: NatsQueueOptions, { clock, onProblem }: QueueWorld): Promise<JobQueue> {
  const { prefix = DEFAULT_PREFIX, replicas = 1, leaseMs } = options;
  const names = natsNames(prefix);
  const link = await NatsLink.open(options);
  try {
    for (const config of streams(names, replicas)) await link.ensureStream(config);
    const stream = new WorkStream(link, names, replicas, onProblem);
    await stream.open();
    const work = new NatsWork(link, names, stream, { clock, leaseMs, onProblem });
    return {
      work,
      events: new NatsEvents(link, names),
      records: new NatsRecords(link, names),
      check: async () => {
        for (const name of [names.work, names.dead, names.events, names.records, names.forgiven]) {
          await link.ask(`stream ${name}`, () => link.manager.streams.info(name));
        }
      },
      onConnection: (listener) => link.onConnection(listener),
      close: async () => {
        work.closing();
        await link.close();
      },
    };
  } catch (error) {
    await link.close();
    throw error;
  }
}

function streams(names: NatsNames, replicas: number): (Partial<StreamConfig> & { name: string })[] {
  const common = {
    storage: StorageType.File,
    num_replicas: replicas,
    retention: RetentionPolicy.Limits,
    duplicate_window: REPEATS_KNOWN_MS * 1e6,
    allow_direct: true,
  };
  return [
    { ...common, name: names.dead, subjects: [names.allLetters] },
    { ...common, name: names.events, subjects: [names.allEvents] },
    { ...common, name: names.records, subjects: [names.allRecords], max_msgs_per_subject: 1 },
    {
      ...common,
      name: names.forgiven,
      subjects: [names.allForgiven],
      max_msgs_per_subject: 1,
      max_age: FORGIVEN_KEPT_MS * 1e6,
    },
  ];
}
