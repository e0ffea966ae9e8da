import { afterEach, describe, expect, it } from "vitest";
import { FakeWorker, fakeModel } from "../testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

const MODEL = fakeModel().id!;

/** A second of one row of 32 x 32: 25 steps with guidance take 50. */
const SLOW = [{ model: MODEL, height: 32, width: 32, ms: 1_000 }];
const FAST = [{ model: MODEL, height: 32, width: 32, ms: 1 }];

describe("admission", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;
  afterEach(async () => {
    await gateway.stop();
    await worker.stop();
  });
  const start = async (state: Parameters<typeof FakeWorker.start>[0], env: Record<string, string> = {}) => {
    worker = await FakeWorker.start(state);
    gateway = await startGateway([worker.address], env);
    await gateway.until(allReady);
  };
  const read = async (response: Response) =>
    (await response.json()) as { error: object; receipt: { steps: number; reduced?: object } };
  const ask = (body: object) =>
    fetch(`${gateway.url}/v1/generations`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: "a mug", width: 256, height: 256, ...body }),
    });

  it("refuses with 503 and the time until there is room, and asks the worker nothing", async () => {
    // In jobs that are shorter than this request, since it would pass longer ones.
    const busy = Array.from({ length: 2_000 }, () => 10);
    await start(
      { rowTimes: FAST, jobsLeftInteractiveMs: busy, backlogInteractiveMs: 20_000 },
      { ATELIER_WAIT_MAX_MS: "5000" },
    );
    const refused = await ask({});
    expect(refused.status).toBe(503);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThanOrEqual(14);
    expect(Number(refused.headers.get("retry-after"))).toBeLessThanOrEqual(15);
    expect((await read(refused)).error).toMatchObject({ code: "OVERLOADED" });
    expect(worker.requests).toEqual([]);
    const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
    expect(metrics).toMatch(/admission_refusals_total\{[^}]*reason="queue"[^}]*\} 1/);
  });

  it("refuses at once what cannot be finished by its deadline, naming the field", async () => {
    await start({ rowTimes: SLOW });
    for (const seed of [1, 2, 3]) expect((await ask({ seed, deadline_ms: 5_000 })).status).toBe(200); // it was only a guess
    worker.requests.length = 0;
    const refused = await ask({ deadline_ms: 5_000 });
    expect(refused.status).toBe(504);
    expect((await read(refused)).error).toMatchObject({ code: "DEADLINE_EXCEEDED", field: "deadline_ms" });
    expect(worker.requests).toEqual([]);
  });

  it("does not make interactive requests wait for bulk work", async () => {
    await start({ rowTimes: FAST, backlogBulkMs: 600_000, jobsLeftBulkMs: [600_000] }, { ATELIER_WAIT_MAX_MS: "5000" });
    expect((await ask({})).status).toBe(200);
    const bulk = await ask({ priority: "bulk", steps: 150, prompt: "another" });
    expect(bulk.status).toBe(200); // shorter than what is there, so it goes first
  });

  it("makes pictures with less when it is told to, and every answer says so", async () => {
    const busy = Array.from({ length: 500 }, () => 10);
    await start(
      { rowTimes: FAST, jobsLeftInteractiveMs: busy, backlogInteractiveMs: 5_000 },
      { ATELIER_BROWN_OUT_AFTER_MS: "2000" },
    );
    const answer = await ask({ steps: 30, sampler: "ddim" });
    expect(answer.status).toBe(200);
    expect(answer.headers.get("x-atelier-reduced")).toBe("steps=30->15, sampler=ddim->dpmpp_2m");
    expect(worker.requests[0]?.parameters).toMatchObject({ steps: 15 });
    const { receipt } = await read(answer);
    expect(receipt).toMatchObject({ steps: 15, reduced: { steps: 30, sampler: "ddim" } });

    const seeded = await ask({ steps: 30, seed: 7 });
    expect(seeded.headers.get("x-atelier-reduced")).toBeNull();
    expect((await read(seeded)).receipt.steps).toBe(30);
  });
});
