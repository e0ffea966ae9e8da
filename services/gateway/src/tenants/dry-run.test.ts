import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { bearer, keysJson, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("POST /generate?dry_run=true", () => {
  const user = testKey({ tenant: "shop", models: ["atelier-tiny"] });
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    const tenants = [{ id: "shop", price_per_device_hour: 7.2, requests_per_minute: 1 }];
    gateway = await startGateway([worker.address], {
      ATELIER_KEYS: keysJson([user], tenants),
      ATELIER_CURRENCY: "EUR",
      ATELIER_CACHE_SCOPE: "tenant",
    });
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  it("says what the request would take and cost, with its defaults, makes nothing and counts nothing", async () => {
    for (let i = 0; i < 3; i++) {
      const { status, body } = await dryRun({ prompt: "a mug", num_images: 2 });
      expect(status).toBe(200);
      const { predicted, cost, cache, ...rest } = body;
      expect(cache).toMatchObject({ kept: 0 });
      expect(rest).toEqual({
        dry_run: true,
        request: {
          model: "atelier-tiny",
          prompt: "a mug",
          negative_prompt: "低分辨率, 模糊",
          width: 512,
          height: 512,
          steps: 25,
          guidance_scale: 2.5,
          sampler: "dpmpp_2m",
          karras_sigmas: false,
          seed: null,
          num_images: 2,
          format: "png",
          loras: [],
        },
      });
      expect(predicted.device_seconds).toBeGreaterThan(0);
      expect(predicted.wait_ms).toBeGreaterThanOrEqual(0);
      expect(cost).toMatchObject({ currency: "EUR", price_per_device_hour: 7.2 });
      expect(cost.amount).toBeCloseTo((predicted.device_seconds / 3600) * 7.2, 5);
      expect(cost.per_image).toBeCloseTo(cost.amount / 2, 9);
    }
    expect(worker.requests).toEqual([]);
    const usage = await (await fetch(`${gateway.url}/v1/usage`, { headers: bearer(user) })).json();
    expect(usage).toMatchObject({ total: { requests: 0, images: 0, cost: 0, cost_per_image: null } });
  });

  it("says whether the pictures are at hand", async () => {
    const asked = { prompt: "a mug that is kept", seed: 5 };
    expect((await dryRun(asked)).body.cache).toEqual({ kept: 0, of: 1 });
    const mine = testKey({ tenant: "other" });
    const other = await startGateway([worker.address], {
      ATELIER_KEYS: keysJson([user, mine]),
      ATELIER_CACHE_SCOPE: "tenant",
      ATELIER_CACHE_MIN_ASKS: "1",
    });
    await other.until(allReady);
    const on = (key: typeof user, query: string) =>
      fetch(`${other.url}/generate${query}`, {
        method: "POST",
        headers: { ...bearer(key), "content-type": "application/json" },
        body: JSON.stringify(asked),
      }).then((response) => response.json() as Promise<{ cache: unknown }>);
    await on(user, "");
    expect((await on(user, "?dry_run=true")).cache).toEqual({ kept: 1, of: 1 });
    expect((await on(mine, "?dry_run=true")).cache).toEqual({ kept: 0, of: 1 });
    await other.stop();
  });

  it("costs more with more steps", async () => {
    const [few, many] = await Promise.all([5, 50].map((steps) => dryRun({ prompt: "a mug", steps })));
    expect(many!.body.cost.amount).toBeGreaterThan(few!.body.cost.amount);
  });

  it.each([
    [{ prompt: "x", steps: 0 }, 400, "steps"],
    [{ prompt: "x", width: 10_000 }, 400, "width"],
    [{ prompt: "x", model: "other" }, 403, "model"],
  ])("refuses what the request itself would be refused for: %j", async (body, status, field) => {
    const refused = await dryRun(body);
    expect([refused.status, refused.body.error.field]).toEqual([status, field]);
  });

  it.each(["dry_run=yes", "dry_run=", "dryrun=true"])("refuses ?%s", async (query) => {
    const before = worker.requests.length;
    expect((await ask(query, { prompt: "x" })).status).toBe(400);
    expect(worker.requests).toHaveLength(before);
  });

  const dryRun = (body: object) => ask("dry_run=true", body);
  // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for.
  async function ask(query: string, body: object): Promise<{ status: number; body: any }> {
    const response = await fetch(`${gateway.url}/generate?${query}`, {
      method: "POST",
      headers: { ...bearer(user), "content-type": "application/json", accept: "image/png" },
      body: JSON.stringify(body),
    });
    return { status: response.status, body: await response.json() };
  }
});
