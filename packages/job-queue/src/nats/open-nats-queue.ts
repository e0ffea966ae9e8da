import type { JobQueue } from "../job-queue.ts";
import type { QueueOptions, QueueWorld } from "../open-job-queue.ts";
import { KeptStreams } from "./kept-streams.ts";
import { natsNames } from "./names.ts";
import { NatsEvents } from "./nats-events.ts";
import { type LinkOptions, NatsLink } from "./nats-link.ts";
import { NatsRecords } from "./nats-records.ts";
import { NatsWork } from "./nats-work.ts";
import { WorkStream } from "./work-stream.ts";

export type NatsQueueOptions = Omit<QueueOptions, "address"> & Omit<LinkOptions, "timeoutMs">;

const DEFAULT_PREFIX = "ATELIER";

/**
 * A queue on a NATS server with JetStream, or a cluster of them: streams in files, made where there are none.
 *
 * @throws ServingError STORAGE_UNAVAILABLE where it cannot be reached, is too old, has no JetStream, or has lost a stream that
 *   cannot be made up for.
 */
export async function openNatsQueue(options: NatsQueueOptions, { clock, onProblem }: QueueWorld): Promise<JobQueue> {
  const { prefix = DEFAULT_PREFIX, replicas = 1, leaseMs } = options;
  const names = natsNames(prefix);
  const link = await NatsLink.open(options);
  try {
    const kept = new KeptStreams(link, names, replicas);
    await kept.open();
    const stream = new WorkStream(link, names, replicas, onProblem);
    await stream.open();
    const work = new NatsWork(link, names, stream, { clock, leaseMs, onProblem });
    return {
      work,
      events: new NatsEvents(link, names),
      records: new NatsRecords(link, names),
      check: async () => {
        await link.ask(`stream ${names.work}`, () => link.manager.streams.info(names.work));
        await kept.check();
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
