import { createHash } from "node:crypto";
import { systemClock, systemRandom } from "@atelier/core";
import { PriorityClass } from "@atelier/proto";
import { createLogger } from "@atelier/telemetry";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { WorkerMetrics } from "../metrics.ts";
import { createPipeline, type Pipeline } from "../pipeline.ts";
import { TEST_BUNDLE } from "../testing/test-bundle.ts";
import { Bulk } from "./bulk.ts";
import { BulkMetrics } from "./bulk-metrics.ts";
import { item, JOB, openStorage, type Storage } from "./testing/items.ts";

describe("a worker that pulls items", () => {
  let storage: Storage;
  let worker: TestWorker | undefined;

  beforeEach(async () => {
    storage = await openStorage();
  });
  afterEach(async () => {
    await worker?.close();
    worker = undefined;
    await storage.close();
  });

  it("makes them, stores the pictures where the items say, tells how they ended, and leaves the queue empty", async () => {
    await storage.queue.work.publish([item(0), item(1, { priorityClass: PriorityClass.STANDARD }), item(2)]);
    worker = await openWorker(storage);
    const outcomes = await storage.ended(3);
    expect(outcomes.map(({ itemIndex }) => itemIndex).toSorted()).toEqual([0, 1, 2]);
    for (const { itemIndex, attempts, result } of outcomes) {
      const bytes = (await storage.bytes(`jobs/${JOB}/pictures/${itemIndex}.png`))!;
      expect(bytes.subarray(1, 4).toString()).toBe("PNG");
      expect(attempts).toBe(1);
      expect(result).toMatchObject({
        case: "done",
        value: {
          objectKey: `jobs/${JOB}/pictures/${itemIndex}.png`,
          sha256: createHash("sha256").update(bytes).digest("hex"),
          bytes: BigInt(bytes.length),
          mediaType: "image/png",
          receipt: { workerId: "w1", parameters: { prompt: "", negativePrompt: "", seed: BigInt(itemIndex) } },
        },
      });
    }
    await worker.idle();
    expect(await storage.queue.work.depths()).toEqual([]);
  });
});

interface TestWorker {
  readonly pipeline: Pipeline;
  readonly bulk: Bulk;
  /** Resolves when it holds nothing. */
  idle(): Promise<void>;
  close(): Promise<void>;
}

async function openWorker(
  { folder }: Storage,
  { id = "w1", queueMax = 8, leaseMs = 30_000 } = {},
): Promise<TestWorker> {
  const heldMax = 16;
  const fail = (error: unknown) => {
    throw error;
  };
  const pipeline = await createPipeline({
    bundleDirs: [TEST_BUNDLE],
    device: { kind: "onnx", provider: "cpu", threads: 1 },
    limits: { queueMax, stepBatchMax: 2, pulledMax: heldMax },
    onFatal: fail,
  });
  await pipeline.preload();
  const logger = createLogger("worker", "silent", {});
  const metrics = new BulkMetrics(new WorkerMetrics().registry, logger);
  const bulk = new Bulk(
    {
      queue: { address: `sqlite:${folder}/queue.db`, replicas: 1, leaseMs, timeoutMs: 5000 },
      objects: `file:${folder}/objects`,
      attemptsMax: 5,
    },
    {
      pipeline,
      identity: { id, device: "cpu", simulated: false },
      metrics,
      logger,
      clock: systemClock,
      random: systemRandom,
      heldMax,
      onFatal: fail,
    },
  );
  bulk.start();
  return {
    pipeline,
    bulk,
    async idle() {
      while (metrics.puller === undefined || metrics.puller.state.held > 0)
        await new Promise((resolve) => setTimeout(resolve, 10));
    },
    async close() {
      await bulk.close();
      await pipeline.close();
    },
  };
}
