import { createHash } from "node:crypto";
import { rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Deadline, ServingError, systemClock, systemRandom } from "@atelier/core";
import { GenerateRequestSchema, ImageFormat, type ItemOutcome, PriorityClass } from "@atelier/proto";
import { createLogger } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MemoryBudget } from "../memory/memory-budget.ts";
import { memoryOf } from "../memory/model-memory.ts";
import { WorkerMetrics } from "../metrics.ts";
import { readModels } from "../models.ts";
import { createPipeline, type Pipeline } from "../pipeline.ts";
import { readGenerateRequest } from "../server/wire.ts";
import type { PriorityClass as PriorityClassName } from "../stages/order/service-order.ts";
import { copyBundle } from "../testing/copied-bundle.ts";
import { TEST_BUNDLE } from "../testing/test-bundle.ts";
import { Bulk } from "./bulk.ts";
import { BulkMetrics } from "./bulk-metrics.ts";
import { item, JOB, openStorage, type Storage } from "./testing/items.ts";

describe("a worker that pulls items", () => {
  let storage: Storage;
  const workers: TestWorker[] = [];

  beforeEach(async () => {
    storage = await openStorage();
  });
  afterEach(async () => {
    await Promise.all(workers.splice(0).map((worker) => worker.close()));
    await storage.close();
  });

  it("makes them, stores the pictures where the items say, tells how they ended, and leaves the queue empty", async () => {
    await storage.queue.work.publish([item(0), item(1, { priorityClass: PriorityClass.STANDARD }), item(2)]);
    const worker = await open();
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

  it("makes the same bytes of an item that comes again, on another worker and in other company", async () => {
    await storage.queue.work.publish([item(0)]);
    const first = await open();
    const [before] = await storage.ended(1);
    await first.idle();
    first.bulk.stop();
    // As after a loss: handed out anew, under the same key.
    await storage.queue.work.publish([item(1), item(0, { round: 1 }), item(2)]);
    await open({ id: "w2" });
    const outcomes = await storage.ended(4);
    const again = outcomes.find(({ itemIndex, round }) => itemIndex === 0 && round === 1);
    expect(shaOf(again)).toMatch(/^[0-9a-f]{64}$/);
    expect(shaOf(again)).toBe(shaOf(before));
    expect(shaOf(outcomes.find(({ itemIndex }) => itemIndex === 1))).not.toBe(shaOf(before));
  });

  it("that leaves hands a picture back with where it stands, and another makes of it the same bytes from there", async () => {
    const long = { parameters: { steps: 30 } };
    const first = await open();
    await storage.queue.work.publish([item(0, long)]);
    await until(() => first.steps() >= 3);
    first.bulk.stop();
    first.pipeline.handBack(new ServingError("DRAINING", "leaving"));
    first.bulk.leave();
    await first.bulk.settled();
    const key = `jobs/${JOB}/checkpoints/0.state`;
    expect(await storage.store.head(key)).toBeDefined();

    await open({ id: "w2" });
    const [moved] = await storage.ended(1);
    expect(moved).toMatchObject({ attempts: 1, result: { case: "done", value: { receipt: { workerId: "w2" } } } });
    const resumedAt = moved!.result.case === "done" ? moved!.result.value.receipt!.resumedAtSteps : [];
    expect(resumedAt[0]).toBeGreaterThanOrEqual(3);
    await until(async () => (await storage.store.head(key)) === undefined);

    await storage.queue.work.publish([item(0, { ...long, round: 1 })]);
    const [, whole] = await storage.ended(2);
    expect(whole).toMatchObject({ result: { value: { receipt: { resumedAtSteps: [] } } } });
    expect(shaOf(moved)).toBe(shaOf(whole));
  });

  it("begins a picture anew where the state that was left is of another one", async () => {
    const first = await open();
    await storage.queue.work.publish([item(0, { parameters: { steps: 30 } })]);
    await until(() => first.steps() >= 2);
    first.pipeline.handBack(new ServingError("DRAINING", "leaving"));
    first.bulk.leave();
    await first.bulk.settled();
    await storage.queue.work.withdraw(JOB);
    await storage.queue.work.publish([item(0, { parameters: { prompt: "a blue sofa" }, round: 1 })]);
    await open({ id: "w2" });
    const [outcome] = await storage.ended(1);
    expect(outcome).toMatchObject({
      attempts: 1,
      result: { case: "done", value: { receipt: { resumedAtSteps: [] } } },
    });
  });

  it("stops a picture at its next step when its job is withdrawn", async () => {
    const worker = await open();
    await storage.queue.work.publish([item(0, { parameters: { steps: 150 } })]);
    await until(() => worker.steps() >= 2);
    await storage.queue.work.withdraw(JOB, { stop: true });
    await worker.pipeline.idle();
    expect(worker.steps()).toBeLessThan(100);
    await worker.idle();
    expect(await storage.outcomes()).toEqual([]);
    expect(await storage.store.head(item(0).objectKey)).toBeUndefined();
  });

  it("fails what no worker can make at once, naming the field", async () => {
    await storage.queue.work.publish([item(0, { parameters: { width: 100 } }), item(1)]);
    await open();
    const outcomes = await storage.ended(2);
    const failed = outcomes.find(({ itemIndex }) => itemIndex === 0)!;
    expect(failed.result).toMatchObject({ case: "failed", value: { code: "INVALID_REQUEST", deadLetter: false } });
    expect(failed.result.value).toHaveProperty("message", expect.stringContaining("width 100"));
  });

  it("keeps its requests' places free, however many items it has, and counts items among the bulk backlog", async () => {
    await storage.queue.work.publish(Array.from({ length: 10 }, (_, i) => item(i, { parameters: { steps: 20 } })));
    const worker = await open({ queueMax: 2 });
    await until(() => worker.pipeline.state.requestsInFlight > 2);
    const { requestsFree, backlogMs, jobsLeftMs } = worker.pipeline.state;
    expect(requestsFree).toBe(2);
    expect(backlogMs.bulk).toBeGreaterThan(0);
    expect(jobsLeftMs.bulk.length).toBeGreaterThan(2);
    expect([backlogMs.interactive, backlogMs.standard]).toEqual([0, 0]);
  });

  it("lets a request have every step from the next one on, and takes the items up again after it", async () => {
    await storage.queue.work.publish(Array.from({ length: 4 }, (_, i) => item(i, { parameters: { steps: 150 } })));
    const worker = await open();
    await until(() => worker.steps() >= 4);
    const before = worker.turns.length;
    await worker.request({ steps: 12 });
    // One batch may have been running when it came, and one while its text was encoded.
    const meanwhile = worker.turns.slice(before);
    const first = meanwhile.indexOf("interactive");
    expect(meanwhile.slice(first, first + 12)).toEqual(Array.from({ length: 12 }, () => "interactive"));
    await until(() => worker.turns.slice(before + first + 12).includes("bulk"));
  });

  describe("and memory for one model of two", () => {
    it("lets go of items whose model a request needs the room of, which is no fault of theirs", async () => {
      await storage.queue.work.publish(Array.from({ length: 4 }, (_, i) => item(i, { parameters: { steps: 150 } })));
      const worker = await open({ models: 2 });
      await until(() => worker.steps() >= 4);
      await worker.request({ steps: 2, model: "second" });
      expect(await storage.outcomes()).toEqual([]);
      await until(async () =>
        (await storage.queue.work.depths()).some(({ waiting, held }) => waiting === 4 && held === 0),
      );
      const [lease] = await storage.queue.work.pull({
        priorityClass: PriorityClass.BULK,
        model: "atelier-tiny",
        max: 1,
        waitMs: 5000,
      });
      expect(lease!.attempt).toBe(1); // no fault of the item's
      await lease!.release({ forgiven: true });
    });

    it("loads the one that items wait for when none wait for the other", async () => {
      await storage.queue.work.publish([item(0, { parameters: { model: "second" } })]);
      const worker = await open({ models: 2 });
      const [outcome] = await storage.ended(1);
      expect(outcome!.result.case).toBe("done");
      const places = worker.pipeline.state.places.map(({ id, status }) => `${id} ${status}`);
      expect(places).toEqual(["atelier-tiny on-disk", "second resident"]);
    });
  });

  it("serves requests while the queue and the store cannot be opened, and pulls as soon as they can", async () => {
    const folder = `${storage.folder}/later`;
    await writeFile(folder, "in the way");
    await storage.queue.work.publish([item(0)]);
    const worker = await open({ folder });
    await worker.request({ steps: 2 });
    expect(await storage.outcomes()).toEqual([]);
    await rm(folder);
    await symlink(storage.folder, folder);
    await storage.ended(1);
    await rm(folder);
  });

  async function open(options: Parameters<typeof openWorker>[1] = {}): Promise<TestWorker> {
    const worker = await openWorker(storage, options);
    workers.push(worker);
    return worker;
  }
});

function shaOf(outcome: ItemOutcome | undefined): string {
  return outcome?.result.case === "done" ? outcome.result.value.sha256 : "none";
}

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 2));
}

interface TestWorker {
  readonly pipeline: Pipeline;
  readonly bulk: Bulk;
  /** Classes of the images that led the step batches so far. */
  readonly turns: readonly PriorityClassName[];
  /** Steps made so far, of all images. */
  steps(): number;
  /** One interactive picture, beginning to end. */
  request(change: { steps: number; model?: string }): Promise<void>;
  /** Resolves when it holds nothing. */
  idle(): Promise<void>;
  close(): Promise<void>;
}

async function openWorker(
  storage: Storage,
  {
    id = "w1",
    queueMax = 8,
    folder = storage.folder,
    models = 1,
  }: { id?: string; queueMax?: number; folder?: string; models?: 1 | 2 },
): Promise<TestWorker> {
  const heldMax = 16;
  const fail = (error: unknown) => {
    throw error;
  };
  const turns: PriorityClassName[] = [];
  let steps = 0;
  const bundleDirs = [TEST_BUNDLE];
  if (models === 2) bundleDirs.push(await copyBundle(join(storage.folder, "second"), "second"));
  const pipeline = await createPipeline({
    bundleDirs,
    // What other tests of this process take is not learned from.
    ...(models === 2 && { memoryBudgetBytes: await roomForOne(), residentBytes: () => undefined }),
    device: { kind: "onnx", provider: "cpu", threads: 1 },
    limits: { queueMax, stepBatchMax: 2, pulledMax: heldMax },
    observer: {
      ran: (report) => {
        turns.push(report.priorityClass);
        steps += report.steps.length;
      },
      stageTook: () => {},
      embedded: () => {},
    },
    onFatal: fail,
  });
  await pipeline.preload(["atelier-tiny"]);
  steps = 0;
  const logger = createLogger("worker", "silent", {});
  const metrics = new BulkMetrics(new WorkerMetrics().registry, logger);
  const bulk = new Bulk(
    {
      queue: { address: `sqlite:${folder}/queue.db`, prefix: "ATELIER", replicas: 1, leaseMs: 30_000, timeoutMs: 5000 },
      objects: `file:${folder}/objects`,
      s3: { endpoint: undefined, region: "us-east-1", pathStyle: false },
      attemptsMax: 5,
    },
    {
      pipeline,
      identity: { id, pool: "default", device: "cpu", simulated: false },
      metrics,
      logger,
      clock: systemClock,
      random: systemRandom,
      heldMax,
      onFatal: fail,
    },
  );
  bulk.start();
  const request = readGenerateRequest(
    create(GenerateRequestSchema, {
      requestId: "request",
      format: ImageFormat.PNG,
      parameters: item(0).parameters!,
      order: { priorityClass: PriorityClass.INTERACTIVE },
    }),
  );
  return {
    pipeline,
    bulk,
    turns,
    steps: () => steps,
    async request(change) {
      const signal = new AbortController().signal;
      const deadline = Deadline.after(systemClock, 60_000);
      await pipeline.generate({ ...request, ...change }, { signal, deadline, onEvent: () => {} });
    },
    idle: () => until(() => metrics.puller !== undefined && metrics.puller.state.held === 0),
    async close() {
      bulk.stop();
      pipeline.handBack(new ServingError("DRAINING", "leaving"));
      await bulk.close();
      await pipeline.close();
    },
  };
}

/** The pictures of these tests fit with one model, and not with both. */
async function roomForOne(): Promise<number> {
  const models = [...(await readModels([TEST_BUNDLE])).values()].map(memoryOf);
  const one = new MemoryBudget({ budgetBytes: Infinity, models, narrowLanesMax: 0, decoderSessions: 1 });
  one.hold("atelier-tiny", one.warmUpDemand("atelier-tiny"));
  return 1.5 * one.usedBytes;
}
