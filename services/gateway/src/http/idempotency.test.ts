import { ServingError } from "@atelier/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("Idempotency-Key", () => {
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

  it.each([
    ["JSON", "application/json"],
    ["a picture", "image/png"],
    ["a stream of events", "text/event-stream"],
  ])("answers once and gives that answer again: %s", async (_kind, accept) => {
    const key = newKey();
    const first = await ask(key, { prompt: "a red mug" }, { accept });
    const body = Buffer.from(await first.arrayBuffer());
    const made = worker.requests.length;
    const again = await ask(key, { prompt: "a red mug" }, { accept });

    expect([first.status, again.status]).toEqual([200, 200]);
    expect(Buffer.from(await again.arrayBuffer()).equals(body)).toBe(true);
    expect(worker.requests.length).toBe(made);
    expect(first.headers.has("idempotency-replayed")).toBe(false);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    for (const header of [
      "content-type",
      "x-atelier-seed",
      "x-atelier-cache",
      "x-atelier-simulated",
      "x-atelier-receipt",
    ]) {
      expect(again.headers.get(header), header).toBe(first.headers.get(header));
    }
    expect(again.headers.get("x-atelier-request-id")).not.toBe(first.headers.get("x-atelier-request-id"));
  });

  it("does the same for /generate", async () => {
    const key = newKey();
    const [first, again] = [
      await ask(key, { prompt: "x" }, {}, "/generate"),
      await ask(key, { prompt: "x" }, {}, "/generate"),
    ];
    expect(await again.text()).toBe(await first.text());
    expect(again.headers.get("idempotency-replayed")).toBe("true");
  });

  it("makes one generation for two requests at once", async () => {
    const key = newKey();
    const before = worker.requests.length;
    const released = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: released.promise });
    const came = worker.nextRequest();
    const both = [ask(key, { prompt: "x" }), ask(key, { prompt: "x" })];
    await came;
    released.resolve();
    const texts = await Promise.all(both.map(async (response) => (await response).text()));
    expect(texts[0]).toBe(texts[1]);
    expect(worker.requests.length).toBe(before + 1);
  });

  it.each([
    ["another body", { prompt: "a blue mug" }, {}, "/v1/generations"],
    ["another kind of answer", { prompt: "a red mug" }, { accept: "image/png" }, "/v1/generations"],
    ["another route", { prompt: "a red mug" }, {}, "/generate"],
  ])("refuses its key with %s: 422", async (_what, body, headers, path) => {
    const key = newKey();
    expect((await ask(key, { prompt: "a red mug" })).status).toBe(200);
    const refused = await ask(key, body, headers, path);
    expect(refused.status).toBe(422);
    expect(await refused.json()).toMatchObject({ error: { code: "CONFLICT", field: "idempotency-key" } });
  });

  it("takes the same meaning spelt otherwise for the same request", async () => {
    const key = newKey();
    const first = await ask(key, { prompt: "caf\u00e9", steps: 25 });
    const again = await ask(key, { prompt: "cafe\u0301" });
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect(await again.text()).toBe(await first.text());
  });

  it("keeps no refusal: the request can be mended under its key", async () => {
    const key = newKey();
    expect((await ask(key, { prompt: "x", steps: 0 })).status).toBe(400); // by its form
    expect((await ask(key, { prompt: "x", model: "nobody-has-it" })).status).toBe(404); // by what there is
    expect((await ask(key, { prompt: "x" })).status).toBe(200);
  });

  it("keeps no failure, but the seed that was drawn", async () => {
    const key = newKey();
    worker.next({ kind: "fail", error: new ServingError("NUMERIC_FAILURE", "NaN") });
    expect((await ask(key, { prompt: "x" })).status).toBe(500);
    expect((await ask(key, { prompt: "x" })).status).toBe(200);
    const [failed, made] = worker.requests.slice(-2);
    expect(made!.parameters!.seed).toBe(failed!.parameters!.seed);
  });

  it("keeps no stream that ended with an error, but the seed that it told", async () => {
    const key = newKey();
    const events = { accept: "text/event-stream" };
    worker.next({ kind: "leave-out", what: "receipt" });
    expect(await (await ask(key, { prompt: "x" }, events)).text()).toContain("event: error");
    const second = await ask(key, { prompt: "x" }, events);
    expect(second.headers.has("idempotency-replayed")).toBe(false);
    expect(await second.text()).toContain("event: completed");
    const [failed, made] = worker.requests.slice(-2);
    expect(made!.parameters!.seed).toBe(failed!.parameters!.seed);
  });

  it.each(["application/json", "text/event-stream"])(
    "lets the next attempt work when the caller of %s left, with the same seed",
    async (accept) => {
      const key = newKey();
      worker.next({ kind: "hang" });
      const came = worker.nextRequest();
      const leaving = new AbortController();
      const left = ask(key, { prompt: "x" }, { accept }, "/v1/generations", leaving.signal)
        .then((response) => response.text())
        .catch(() => "left");
      await came;
      await new Promise((resolve) => setTimeout(resolve, 50)); // a stream has begun by then
      leaving.abort();
      expect(await left).toBe("left");
      expect((await ask(key, { prompt: "x" }, { accept })).status).toBe(200);
      const [first, second] = worker.requests.slice(-2);
      expect(second!.parameters!.seed).toBe(first!.parameters!.seed);
    },
  );

  it.each(["", "two words", "x".repeat(256), "zwölf", "a, b"])("refuses the key %j by name", async (key) => {
    const refused = await ask(key, { prompt: "x" });
    expect(refused.status).toBe(400);
    expect(await refused.json()).toMatchObject({ error: { code: "INVALID_REQUEST", field: "idempotency-key" } });
  });

  it("counts what became of them", async () => {
    const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
    for (const outcome of ["first", "replayed", "conflict"]) {
      expect(metrics).toMatch(new RegExp(`atelier_gateway_idempotency_total\\{outcome="${outcome}"[^}]*\\} [1-9]`));
    }
  });

  const ask = (
    key: string,
    body: unknown,
    headers: Record<string, string> = {},
    path = "/v1/generations",
    signal?: AbortSignal,
  ) =>
    fetch(`${gateway.url}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": key, ...headers },
      body: JSON.stringify(body),
      ...(signal && { signal }),
    });
});

let keys = 0;
const newKey = () => `key-${keys++}`;
