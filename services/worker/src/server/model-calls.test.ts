import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ModelStatus } from "@atelier/proto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { copyBundle } from "../testing/copied-bundle.ts";
import { type SpawnedWorker, spawnWorker } from "../testing/spawn-worker.ts";
import { TEST_BUNDLE } from "../testing/test-bundle.ts";
import { SMALL, WorkerClient } from "../testing/worker-client.ts";

describe("a worker process with two models, the first of which is loaded at the start", () => {
  let folder: string;
  let worker: SpawnedWorker;
  let client: WorkerClient;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-calls-"));
    const second = await copyBundle(join(folder, "second"), "second");
    worker = spawnWorker({
      ATELIER_MODELS: `${TEST_BUNDLE},${second}`,
      ATELIER_PRELOAD: "atelier-tiny",
      ATELIER_MEMORY_BUDGET: "4GiB",
      ATELIER_THREADS: "1",
    });
    client = new WorkerClient((await worker.said("listening")).address);
  });
  afterAll(async () => {
    client.close();
    worker.process.kill("SIGTERM");
    await worker.exited;
    await rm(folder, { recursive: true });
  });

  it("shows the load before it is ready, and refuses to be told what to load meanwhile", async () => {
    const early = await client.state(({ places }) => places.length > 0);
    expect(early).toMatchObject({ ready: false, models: [] });
    expect(early.places.map(({ id }) => id)).toEqual(["atelier-tiny", "second"]);
    await expect(client.loadModel("second")).rejects.toMatchObject({ code: "NO_WORKER" });
  });

  it("says of every model that it serves where it is, and what is counted of the memory", async () => {
    await worker.said("ready");
    const state = await client.state();
    expect(state.models.map(({ id }) => id)).toEqual(["atelier-tiny", "second"]);
    expect(state.places.map(({ id, status }) => [id, status])).toEqual([
      ["atelier-tiny", ModelStatus.RESIDENT],
      ["second", ModelStatus.ON_DISK],
    ]);
    expect(state.memoryBudgetBytes).toBe(4n * 2n ** 30n);
    expect(state.memoryUsedBytes).toBeGreaterThan(state.places[0]!.weightsBytes);
    expect(state.memoryUsedBytes).toBeLessThan(state.memoryBudgetBytes);
  });

  it("loads a model when told to, and tells how far it is", async () => {
    const places = await client.loadModel("second");
    expect(places[0]).toMatchObject({ id: "second", status: ModelStatus.LOADING });
    expect(places.at(-1)).toMatchObject({ status: ModelStatus.RESIDENT, progress: 1, error: "" });
    const progress = places.map((place) => place.progress);
    expect(progress).toEqual(progress.toSorted((a, b) => a - b));
    const again = await client.loadModel("second"); // it is there
    expect(new Set(again.map(({ status }) => status))).toEqual(new Set([ModelStatus.RESIDENT]));
  });

  it("unloads a model when told to, and not while it is in use", async () => {
    const generation = client.generate({ ...SMALL, model: "second", steps: 150, width: 256, height: 256 });
    await generation.first("progress");
    await expect(client.unloadModel("second")).rejects.toMatchObject({
      code: "OVERLOADED",
      detail: 'model "second" is in use: 1 request is in flight',
    });
    generation.cancel();
    await expect(generation.ended).rejects.toMatchObject({ code: "CANCELLED" });
    await client.state(({ requestsInFlight }) => requestsInFlight === 0);
    expect((await client.unloadModel("second")).freedBytes).toBeGreaterThan(0n);
    expect((await client.unloadModel("second")).freedBytes).toBe(0n);
  });

  it("names the models there are where another is to be loaded or unloaded", async () => {
    const detail = 'model "sdxl" is not here; this worker has atelier-tiny, second';
    await expect(client.loadModel("sdxl")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND", detail });
    await expect(client.unloadModel("sdxl")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND", detail });
  });
});
