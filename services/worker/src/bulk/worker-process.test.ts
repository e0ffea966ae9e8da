import { once } from "node:events";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type SpawnedWorker, spawnWorker } from "../testing/spawn-worker.ts";
import { TEST_BUNDLE } from "../testing/test-bundle.ts";
import { item, JOB, openStorage, type Storage } from "./testing/items.ts";

const LONG = { parameters: { steps: 150 } };

describe("a worker process with items", () => {
  let storage: Storage;
  const processes: SpawnedWorker[] = [];

  beforeEach(async () => {
    storage = await openStorage({ leaseMs: 2000 });
  });
  afterEach(async () => {
    for (const { process, exited } of processes.splice(0)) {
      process.kill("SIGTERM");
      await exited;
    }
    await storage.close();
  });

  it("that is told to go hands them back with where they stand, and the next goes on from there", async () => {
    const first = start("first");
    await storage.queue.work.publish([item(0, LONG)]);
    await steps(5);
    first.process.kill("SIGTERM");
    expect(await first.exited).toEqual({ code: 0, stderr: "" });
    expect(await storage.store.head(`jobs/${JOB}/checkpoints/0.state`)).toBeDefined();

    start("second");
    const [outcome] = await storage.ended(1);
    expect(outcome!.attempts).toBe(1);
    expect(outcome!.result).toMatchObject({ case: "done", value: { receipt: { workerId: "second" } } });
    const { receipt } = outcome!.result.value as { receipt: { resumedAtSteps: number[] } };
    expect(receipt.resumedAtSteps[0]).toBeGreaterThanOrEqual(5);
  });

  it("that is killed loses them to another when their lease is over, which counts as a try", async () => {
    const first = start("first");
    await storage.queue.work.publish([item(0, LONG)]);
    await steps(5);
    first.process.kill("SIGKILL");
    await once(first.process, "exit");
    const second = start("second");
    const [outcome] = await storage.ended(1);
    expect(outcome).toMatchObject({
      attempts: 2,
      result: { case: "done", value: { receipt: { workerId: "second" } } },
    });
    const { metricsAddress } = await second.said("listening");
    const metrics = async () => (await fetch(`http://${metricsAddress}/metrics`)).text();
    await expect.poll(metrics).toMatch(/^atelier_worker_items_total\{outcome="done",class="bulk",.*\} 1$/m);
    expect(await metrics()).toMatch(/^atelier_worker_item_redeliveries_total\{.*\} 1$/m);
    expect(await metrics()).toMatch(/^atelier_worker_item_pulling_paused\{reason="store",.*\} 0$/m);
  });

  function start(id: string): SpawnedWorker {
    const worker = spawnWorker({
      ATELIER_WORKER_ID: id,
      ATELIER_MODELS: TEST_BUNDLE,
      ATELIER_QUEUE: `sqlite:${storage.folder}/queue.db`,
      ATELIER_OBJECTS: `file:${storage.folder}/objects`,
      ATELIER_QUEUE_LEASE_MS: "2000",
      ATELIER_QUEUE_TIMEOUT_MS: "1000",
      ATELIER_DRAIN_MS: "0",
    });
    processes.push(worker);
    return worker;
  }

  /** Resolves when some item is said to have made so many. */
  function steps(count: number): Promise<void> {
    return new Promise((resolve) => {
      const stop = storage.queue.work.onProgress(({ stepsDone }) => {
        if (stepsDone < count) return;
        stop();
        resolve();
      });
    });
  }
});
