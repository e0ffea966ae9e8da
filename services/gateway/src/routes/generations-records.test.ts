import { sha256 } from "@atelier/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type GenerationState, generationState } from "../dialects/generations-records.ts";
import { FakeWorker, PICTURE } from "../testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("POST /v1/generations with Prefer: respond-async", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address]);
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  it("answers 202 with a place to ask, where the generation is to be read until it has its pictures", async () => {
    const released = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: released.promise });
    const begun = await post({ prompt: "a red mug", seed: 7, num_images: 2, steps: 5, format: "webp" });
    expect(begun.status).toBe(202);
    expect(begun.headers.get("preference-applied")).toBe("respond-async");
    const { id, status, progress } = (await begun.json()) as GenerationState;
    expect(begun.headers.get("location")).toBe(`/v1/generations/${id}`);
    expect([status, progress]).toEqual(["running", expect.objectContaining({ steps_total: 10, image_index: 0 })]);

    const early = await get(`/v1/generations/${id}/images/0`);
    expect([early.status, await early.json()]).toMatchObject([409, { error: { code: "CONFLICT" } }]);
    released.resolve();
    const state = (await (await get(`/v1/generations/${id}?wait=5000`)).json()) as GenerationState;
    expect(generationState.strict().parse(state)).toEqual(state);
    expect(state).toMatchObject({
      id,
      status: "succeeded",
      seed: 7,
      model: "atelier-tiny",
      receipt: { seed: 7, cache: "bypass" },
    });
    const digest = sha256(PICTURE);
    const url = (index: number) => `/v1/generations/${id}/images/${index}`;
    expect(state.images).toEqual([
      { url: url(0), media_type: "image/webp", width: 512, height: 512, seed: 7, digest },
      { url: url(1), media_type: "image/webp", width: 512, height: 512, seed: 8, digest },
    ]);

    const picture = await get(url(1));
    expect(picture.status).toBe(200);
    expect(Object.fromEntries(picture.headers)).toMatchObject({
      "content-type": "image/webp",
      "x-atelier-seed": "8",
      "x-atelier-simulated": "true",
      "cache-control": expect.stringMatching(/^private, max-age=3\d{3}, immutable$/),
      "x-atelier-receipt": expect.stringMatching(/^[\w-]+$/),
    });
    expect(Buffer.from(await picture.arrayBuffer())).toEqual(Buffer.from(PICTURE));
    expect((await get(url(2))).status).toBe(404);
  });

  it("draws in the format that Accept prefers", async () => {
    const { id } = (await (await post({ prompt: "x" }, { accept: "image/jpeg" })).json()) as GenerationState;
    const state = (await (await get(`/v1/generations/${id}?wait=5000`)).json()) as GenerationState;
    expect(state.images![0]!.media_type).toBe("image/jpeg");
  });

  it("streams to a caller that would rather have events", async () => {
    const response = await post({ prompt: "x" }, { accept: "text/event-stream" });
    expect(response.status).toBe(200);
    expect(response.headers.has("preference-applied")).toBe(false);
    expect(await response.text()).toContain("event: completed");
  });

  it("refuses a bad request to its face", async () => {
    const refused = await post({ prompt: "x", model: "nobody-has-it" });
    expect([refused.status, await refused.json()]).toMatchObject([404, { error: { code: "MODEL_NOT_FOUND" } }]);
  });

  it("tells why one failed", async () => {
    worker.next({ kind: "leave-out", what: "receipt" });
    const { id } = (await (await post({ prompt: "x" })).json()) as GenerationState;
    const state = (await (await get(`/v1/generations/${id}?wait=5000`)).json()) as GenerationState;
    expect(state).toMatchObject({ status: "failed", error: { code: "INTERNAL" } });
    expect(state).not.toHaveProperty("images");
  });

  it("keeps to its deadline", async () => {
    worker.next({ kind: "hang" });
    const { id } = (await (await post({ prompt: "x", deadline_ms: 400 })).json()) as GenerationState;
    const state = (await (await get(`/v1/generations/${id}?wait=5000`)).json()) as GenerationState;
    expect(state).toMatchObject({ status: "failed", error: { code: "DEADLINE_EXCEEDED" } });
  });

  it("is cancelled with DELETE, and its place on the worker is free", async () => {
    worker.next({ kind: "hang" });
    const { id } = (await (await post({ prompt: "x" })).json()) as GenerationState;
    const { requestId } = worker.requests.at(-1)!;
    const cancelled = await remove(`/v1/generations/${id}`);
    expect([cancelled.status, await cancelled.json()]).toMatchObject([200, { id, status: "cancelled" }]);
    while (!worker.cancelled.includes(requestId)) await new Promise((resolve) => setTimeout(resolve, 10));
    expect(gateway.inFlight.count).toBe(0);
    expect(await (await remove(`/v1/generations/${id}`)).json()).toMatchObject({ status: "cancelled" });
  });

  it("is listed, newest first", async () => {
    const first = (await (await post({ prompt: "x" })).json()) as GenerationState;
    const second = (await (await post({ prompt: "x" })).json()) as GenerationState;
    const { generations } = (await (await get("/v1/generations?limit=2")).json()) as { generations: GenerationState[] };
    expect(generations.map(({ id }) => id).sort()).toEqual([first.id, second.id].sort());
    expect((await get("/v1/generations?limit=101")).status).toBe(400);
  });

  it("starts one generation under one idempotency key", async () => {
    const headers = { "idempotency-key": "the-same" };
    const before = worker.requests.length;
    const [first, again] = [await post({ prompt: "x" }, headers), await post({ prompt: "x" }, headers)];
    expect([first.status, again.status]).toEqual([202, 202]);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect(again.headers.get("location")).toBe(first.headers.get("location"));
    expect(worker.requests.length).toBe(before + 1);
  });

  it.each(["gen_nobody-made-it", "..%2f..%2fadmin", "%0d%0ax-evil:%201", "x".repeat(90)])(
    "knows of no generation %j",
    async (id) => {
      for (const response of [
        await get(`/v1/generations/${id}`),
        await remove(`/v1/generations/${id}`),
        await get(`/v1/generations/${id}/images/0`),
      ]) {
        expect([response.status, await response.json()]).toMatchObject([404, { error: { code: "NOT_FOUND" } }]);
      }
    },
  );

  it("counts how they ended", async () => {
    const metrics = await (await get("/metrics")).text();
    for (const status of ["succeeded", "failed", "cancelled"]) {
      expect(metrics).toMatch(
        new RegExp(`atelier_gateway_background_generations_total\\{status="${status}"[^}]*\\} [1-9]`),
      );
    }
  });

  const post = (body: unknown, headers: Record<string, string> = {}) =>
    fetch(`${gateway.url}/v1/generations`, {
      method: "POST",
      headers: { "content-type": "application/json", prefer: "respond-async", ...headers },
      body: JSON.stringify(body),
    });
  const get = (path: string) => fetch(`${gateway.url}${path}`);
  const remove = (path: string) => fetch(`${gateway.url}${path}`, { method: "DELETE" });
});

describe("a gateway that stops", () => {
  it("waits for what it sees to in the background, and ends what takes too long", async () => {
    const worker = await FakeWorker.start();
    const gateway = await startGateway([worker.address]);
    await gateway.until(allReady);
    const released = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: released.promise }, { kind: "hang" });
    const ids = [];
    for (let i = 0; i < 2; i++) {
      const response = await fetch(`${gateway.url}/v1/generations`, {
        method: "POST",
        headers: { "content-type": "application/json", prefer: "respond-async" },
        body: JSON.stringify({ prompt: "x" }),
      });
      ids.push(((await response.json()) as GenerationState).id);
    }
    const stopped = gateway.stop({ timeoutMs: 300 });
    released.resolve();
    await stopped;
    const records = await Promise.all(
      ids.map(async (id) => JSON.parse((await gateway.store.get(`generation:${id}`))!.toString())),
    );
    expect(records).toMatchObject([{ status: "succeeded" }, { status: "failed", error: { code: "DRAINING" } }]);
    await worker.stop();
  });
});
