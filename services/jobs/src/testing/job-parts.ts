import { ItemOutcomeSchema, type JobEvent, JobEventSchema, JobStatus } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import type { ItemShape, ItemSpec, JobRecord } from "../job.ts";
import type { ItemSource } from "../ports.ts";

export const SHAPE: ItemShape = {
  model: "tiny",
  width: 512,
  height: 512,
  steps: 20,
  guidanceScale: 7,
  sampler: "dpmpp_2m",
  karrasSigmas: false,
  format: "png",
  quality: null,
  predictedDeviceMs: 100,
};

/** An ordinary job; what a test is about is said. */
export function jobRecord(said: Partial<JobRecord> = {}): JobRecord {
  const itemCount = said.itemCount ?? 10;
  return {
    id: "job_a",
    tenant: "shop",
    keyId: null,
    weight: 1,
    name: "launch",
    createdAtMs: 0,
    itemCount,
    shapes: [SHAPE],
    predictedDeviceMs: itemCount * SHAPE.predictedDeviceMs,
    predictedCost: 0.01,
    currency: "EUR",
    pricePerDeviceHour: 3.6,
    source: { kind: "csv", rows: itemCount, skipped: [], skippedCount: 0, seed: 1, clonedFrom: null },
    webhook: null,
    deleteAfterMs: null,
    priority: "bulk",
    wish: "run",
    pausedFor: null,
    round: 1,
    deleting: false,
    ...said,
  };
}

export function itemSpec(index: number): ItemSpec {
  const file = `${index}.png`;
  const texts = { preset: null, sku: null, file, prompt: `shoe ${index}`, negativePrompt: "" };
  return { index, row: index + 1, variant: 1, seed: index, shape: 0, ...texts };
}

/** Items of any job, as many as it is said to have. */
export function itemsOf(count: (jobId: string) => number): ItemSource {
  return {
    async *read(jobId, from) {
      for (let index = from; index < count(jobId); index++) yield itemSpec(index);
    },
  };
}

export type Ending = "done" | "failed" | "filtered";

/** An outcome of an item, whose picture took 10 ms of a device. */
export function outcome(
  index: number,
  ending: Ending = "done",
  { jobId = "job_a", round = 1, attempts = 1, atMs = 1, deadLetter = false, code = "NUMERIC_FAILURE" } = {},
): JobEvent {
  const receipt = { parameters: { model: SHAPE.model }, deviceMs: 10 };
  const result = {
    done: { case: "done", value: { objectKey: `${index}.png`, receipt } },
    failed: { case: "failed", value: { code, message: "NaN at step 3", deadLetter } },
    filtered: { case: "filtered", value: { reason: "policy" } },
  } as const;
  const value = create(ItemOutcomeSchema, { itemIndex: index, round, attempts, result: result[ending] });
  return create(JobEventSchema, { jobId, atMs: BigInt(atMs), event: { case: "outcome", value } });
}

export function change(
  status: keyof typeof JobStatus,
  { jobId = "job_a", atMs = 2, retried = 0, indexes = [] as number[] } = {},
): JobEvent {
  const value = { status: JobStatus[status], retriedItems: retried, retriedItemIndexes: indexes };
  return create(JobEventSchema, { jobId, atMs: BigInt(atMs), event: { case: "change", value } });
}
