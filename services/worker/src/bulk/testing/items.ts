import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@atelier/core";
import { type JobQueue, openJobQueue } from "@atelier/job-queue";
import { type ObjectStore, openObjectStore } from "@atelier/object-store";
import {
  type GenerationParametersSchema,
  ImageFormat,
  type ItemOutcome,
  PriorityClass,
  Sampler,
  type WorkItem,
  WorkItemSchema,
} from "@atelier/proto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";

export const JOB = "job_test";

/** A small picture of a few steps. Its seed is its index, its key follows from that. */
export function item(
  itemIndex: number,
  {
    parameters,
    priorityClass = PriorityClass.BULK,
    ...rest
  }: {
    parameters?: MessageInitShape<typeof GenerationParametersSchema>;
    priorityClass?: PriorityClass;
    round?: number;
    jobId?: string;
  } = {},
): WorkItem {
  const { jobId = JOB } = rest;
  return create(WorkItemSchema, {
    jobId,
    itemIndex,
    objectKey: `jobs/${jobId}/pictures/${itemIndex}.png`,
    format: ImageFormat.PNG,
    order: { priorityClass, tenant: "shop", tenantWeight: 1 },
    round: 0,
    ...rest,
    parameters: {
      model: "atelier-tiny",
      prompt: "a red mug",
      negativePrompt: "blurred",
      width: 128,
      height: 128,
      steps: 4,
      guidanceScale: 2.5,
      sampler: Sampler.DPMPP_2M,
      seed: BigInt(itemIndex),
      numImages: 1,
      ...parameters,
    },
  });
}

/** A queue and a store in a folder of their own. */
export interface Storage {
  readonly folder: string;
  readonly queue: JobQueue;
  readonly store: ObjectStore;
  /** How items of the job ended so far, by index and in the order of the log. */
  outcomes(jobId?: string): Promise<readonly ItemOutcome[]>;
  /** Resolves when so many have. */
  ended(count: number, jobId?: string): Promise<readonly ItemOutcome[]>;
  bytes(key: string): Promise<Buffer | undefined>;
  close(): Promise<void>;
}

export async function openStorage({ leaseMs = 30_000 } = {}): Promise<Storage> {
  const folder = await mkdtemp(join(tmpdir(), "atelier-bulk-"));
  const store = await openObjectStore(`file:${folder}/objects`, { clock: systemClock });
  const queue = await openJobQueue(
    { address: `sqlite:${folder}/queue.db`, leaseMs, timeoutMs: 5000 },
    { clock: systemClock, onProblem: () => {} },
  );
  const outcomes = async (jobId = JOB) => {
    const found: ItemOutcome[] = [];
    for await (const { event } of queue.events.read(jobId))
      if (event.event.case === "outcome") found.push(event.event.value);
    return found;
  };
  return {
    folder,
    queue,
    store,
    outcomes,
    async ended(count, jobId) {
      for (;;) {
        const found = await outcomes(jobId);
        if (found.length >= count) return found;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    },
    async bytes(key) {
      const object = await store.get(key);
      return object && Buffer.concat(await object.body.toArray());
    },
    async close() {
      await queue.close();
      await store.close();
      await rm(folder, { recursive: true });
    },
  };
}
