import { ServingError } from "@atelier/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { WorkerClient } from "./worker-client.ts";

describe("WorkerClient.embedText", () => {
  let worker: FakeWorker;
  let client: WorkerClient;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    client = new WorkerClient(worker.address);
  });
  afterAll(async () => {
    client.close();
    await worker.stop();
  });

  it("gives a vector for each text, in order", async () => {
    worker.vectorOf = (text) => [text.length, 0.5];
    const vectors = await client.embedText("atelier-tiny", ["a", "abc"], { timeoutMs: 5_000 });
    expect(vectors).toEqual([Float32Array.of(1, 0.5), Float32Array.of(3, 0.5)]);
    expect(worker.embedded.at(-1)).toEqual(["a", "abc"]);
  });

  it("fails with the worker's own error", async () => {
    worker.vectorOf = () => new ServingError("NO_WORKER", "not in memory here", { field: "model" });
    const asked = client.embedText("atelier-tiny", ["a"], { timeoutMs: 5_000 });
    await expect(asked).rejects.toMatchObject({ code: "NO_WORKER", field: "model" });
  });

  it("ends when its time is up, and when the worker is gone", async () => {
    const late = client.embedText("atelier-tiny", ["a"], { timeoutMs: 0 });
    await expect(late).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
    await worker.kill();
    const lost = client.embedText("atelier-tiny", ["a"], { timeoutMs: 5_000 });
    await expect(lost).rejects.toBeInstanceOf(ServingError);
    await worker.revive();
  });
});
