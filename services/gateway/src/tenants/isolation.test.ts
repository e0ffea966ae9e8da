import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { bearer, keysJson, type TestKey, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("what one tenant does is nobody else's", () => {
  const shop = testKey({ tenant: "shop" });
  const press = testKey({ tenant: "press" });
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], {
      ATELIER_KEYS: keysJson([shop, press]),
      ATELIER_CACHE_SCOPE: "tenant",
      ATELIER_CACHE_MIN_ASKS: "1",
    });
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  it("makes one prompt anew for each tenant, seed and all", async () => {
    const before = worker.requests.length;
    for (let i = 0; i < 3; i++) {
      for (const key of [shop, press]) await ask(key, "POST", "/generate", { prompt: "one mug", seed: 7 });
    }
    // Once for each: what a tenant asked for before, it is given again.
    const tenants = worker.requests.slice(before).map(({ order }) => order!.tenant);
    expect(tenants).toEqual(["shop", "press"]);
  });

  it("joins no two tenants that ask for the same at the same time", async () => {
    const before = worker.requests.length;
    const gate = Promise.withResolvers<void>();
    const hold = { kind: "answer", after: gate.promise } as const;
    worker.next(hold, hold);
    const asked = [shop, press].map((key) => ask(key, "POST", "/generate", { prompt: "a mug at once", seed: 8 }));
    while (worker.requests.length < before + 2) await new Promise((resolve) => setTimeout(resolve, 5));
    gate.resolve();
    for (const { status, body } of await Promise.all(asked)) {
      expect(status).toBe(200);
      expect(body.receipt.cache).toBe("miss");
    }
  });

  it("takes one idempotency key of two tenants for two", async () => {
    const headers = { "idempotency-key": "order-1" };
    const first = await ask(shop, "POST", "/v1/generations", { prompt: "a secret mug" }, headers);
    const other = await ask(press, "POST", "/v1/generations", { prompt: "another mug" }, headers);
    expect([first.status, other.status]).toEqual([200, 200]);
    expect(other.body.id).not.toBe(first.body.id);
    const again = await ask(shop, "POST", "/v1/generations", { prompt: "a secret mug" }, headers);
    expect(again.body.id).toBe(first.body.id);
  });

  it("knows no generation of another tenant, to look at, to list or to cancel", async () => {
    const started = await ask(shop, "POST", "/v1/generations", { prompt: "x" }, { prefer: "respond-async" });
    expect(started.status).toBe(202);
    const path = `/v1/generations/${started.body.id}`;
    expect((await ask(shop, "GET", path)).status).toBe(200);
    for (const [method, at] of [
      ["GET", path],
      ["DELETE", path],
      ["GET", `${path}/images/0`],
    ] as const) {
      expect((await ask(press, method, at)).status, `${method} ${at}`).toBe(404);
    }
    expect(JSON.stringify((await ask(press, "GET", "/v1/generations")).body)).not.toContain(started.body.id);
    expect(JSON.stringify((await ask(shop, "GET", "/v1/generations")).body)).toContain(started.body.id);
  });

  it("shows a tenant its own use alone", async () => {
    const mine = (await ask(press, "GET", "/v1/usage?group_by=tenant,key")).body;
    expect(mine.rows.map(({ tenant, key }: { tenant: string; key: string }) => [tenant, key])).toEqual([
      ["press", press.id],
    ]);
  });

  async function ask(
    key: TestKey,
    method: string,
    path: string,
    body?: object,
    headers: Record<string, string> = {},
    // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for.
  ): Promise<{ status: number; body: any }> {
    const response = await fetch(gateway.url + path, {
      method,
      headers: { ...bearer(key), ...headers, ...(body && { "content-type": "application/json" }) },
      ...(body && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) };
  }
});
