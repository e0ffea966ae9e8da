import { FakeWorker } from "@atelier/gateway/testing";
import { bearer, keysJson, testKey } from "@atelier/gateway/testing/keys";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { until } from "../support/ends.ts";
import { spawnGateway } from "../support/gateway-process.ts";
import { type RedisProcess, startRedis } from "../support/redis.ts";

const admin = testKey({ role: "admin", tenant: "ops" });

describe("tenants of two gateways on one Redis", () => {
  let redis: RedisProcess;
  let worker: FakeWorker;
  let gateways: TestGateway[];

  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.stop());
  beforeEach(async () => {
    await redis.client.flushall();
    worker = await FakeWorker.start();
  });
  afterEach(async () => {
    worker.usually = { kind: "answer" };
    for (const gateway of gateways) await gateway.stop();
    await worker.stop();
  });

  async function start(tenants: readonly object[], keys = [admin]): Promise<void> {
    const env = {
      ATELIER_REDIS: redis.url,
      ATELIER_KEYS: keysJson(keys, tenants as Readonly<Record<string, unknown>>[]),
      ATELIER_PRICE_PER_DEVICE_HOUR: "3.6",
      ATELIER_CURRENCY: "EUR",
      ATELIER_IN_FLIGHT_MAX: "1000",
    };
    gateways = await Promise.all([startGateway([worker.address], env), startGateway([worker.address], env)]);
    await Promise.all(gateways.map((gateway) => gateway.until(allReady)));
  }
  const ask = async (i: number, method: string, path: string, headers: Record<string, string>, body?: object) => {
    const response = await fetch(gateways[i % gateways.length]!.url + path, {
      method,
      headers: { ...headers, ...(body && { "content-type": "application/json" }) },
      ...(body && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for.
    const json: any = text === "" ? undefined : JSON.parse(text);
    return { status: response.status, headers: response.headers, body: json };
  };
  const generate = (i: number, key: { text: string }, body: object = {}) =>
    ask(i, "POST", "/generate", bearer(key), { prompt: `x ${Math.random()}`, ...body });
  const many = (count: number, key: { text: string }) =>
    Promise.all(Array.from({ length: count }, (_, i) => generate(i, key)));
  const usageOf = async (key: { text: string }, query = "") =>
    (await ask(0, "GET", `/v1/usage${query}`, bearer(key))).body;

  it("let exactly 10 of 100 requests through a limit of 10 a minute, and tell the rest when to come back", async () => {
    const user = testKey({ tenant: "shop" });
    await start([{ id: "shop", requests_per_minute: 10 }], [admin, user]);
    const answers = await many(100, user);
    const refused = answers.filter(({ status }) => status === 429);
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(10);
    expect(refused).toHaveLength(90);
    expect(worker.requests).toHaveLength(10);
    for (const { headers, body } of refused) {
      expect(body.error).toMatchObject({ code: "RATE_LIMITED" });
      expect(body.error.message).toBe("this tenant's requests_per_minute is 10, and that is used up");
      expect(Number(headers.get("retry-after"))).toBeGreaterThan(0);
      expect(headers.get("ratelimit-policy")).toBe('"requests";q=10;w=60');
      expect(headers.get("ratelimit")).toMatch(/^"requests";r=0;t=\d+$/);
      expect(headers.get("x-ratelimit-remaining-requests")).toBe("0");
    }
  });

  it("let exactly 10 run at once, and the next as soon as one is done", async () => {
    const user = testKey({ tenant: "shop" });
    await start([{ id: "shop", concurrent_requests: 10 }], [admin, user]);
    const gate = Promise.withResolvers<void>();
    worker.usually = { kind: "answer", after: gate.promise };
    const codes: (string | number)[] = [];
    const asked = Array.from({ length: 100 }, async (_, i) => {
      const { status, body } = await generate(i, user);
      codes.push(body.error?.code ?? status);
    });
    await until(() => codes.length === 90);
    expect(new Set(codes)).toEqual(new Set(["RATE_LIMITED"]));
    expect(worker.requests).toHaveLength(10);
    gate.resolve();
    await Promise.all(asked);
    expect(codes.slice(90)).toEqual(Array(10).fill(200));
    expect((await generate(1, user)).status).toBe(200);
  });

  it("never overspend a quota, whatever comes at once, and say when the next month begins", async () => {
    const user = testKey({ tenant: "shop" });
    await start([{ id: "shop", images_per_month: 7 }], [admin, user]);
    const answers = await many(40, user);
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(7);
    const [refused] = answers.filter(({ status }) => status === 429);
    expect(refused!.body.error.code).toBe("QUOTA_EXCEEDED");
    const back = new Date(Date.now() + 1000 * Number(refused!.headers.get("retry-after")));
    expect(back.getUTCDate()).toBe(1);
    expect((await usageOf(user)).total.images).toBe(7);
  });

  it("give back what a failed request had put aside", async () => {
    const user = testKey({ tenant: "shop" });
    await start([{ id: "shop", images_per_month: 4 }], [admin, user]);
    worker.usually = { kind: "leave-out", what: "receipt" };
    expect((await generate(0, user, { num_images: 4 })).status).toBe(500);
    worker.usually = { kind: "answer" };
    expect((await generate(1, user, { num_images: 4 })).status).toBe(200);
    expect((await generate(0, user)).status).toBe(429);
  });

  it("refuse for ever, and say so, what is more than a limit allows at once", async () => {
    const user = testKey({ tenant: "shop" });
    await start([{ id: "shop", images_per_minute: 2 }], [admin, user]);
    const { status, body } = await generate(0, user, { num_images: 3 });
    expect([status, body.error.field]).toEqual([403, "num_images"]);
    expect(body.error.message).toContain("images_per_minute is 2");
  });

  it("end the streams of a key that is revoked at the other gateway, and know it no more", async () => {
    await start([]);
    const made = await ask(0, "POST", "/v1/admin/keys", bearer(admin), { name: "shop", tenant: "shop" });
    const key = { text: made.body.key };
    await until(async () => (await ask(1, "GET", "/v1/models", bearer(key))).status === 200);
    worker.next({ kind: "hang" }, { kind: "hang" });
    const streams = await Promise.all(
      gateways.map(({ url }) =>
        fetch(`${url}/generate`, {
          method: "POST",
          headers: { ...bearer(key), "content-type": "application/json", accept: "text/event-stream" },
          body: JSON.stringify({ prompt: "x", steps: 9, ...{ seed: Math.floor(Math.random() * 1e9) } }),
        }),
      ),
    );
    expect((await ask(0, "DELETE", `/v1/admin/keys/${made.body.id}`, bearer(admin))).status).toBe(204);
    for (const stream of streams) {
      expect(await stream.text()).toMatch(/event: error\ndata: .*"UNAUTHENTICATED".*revoked while the request ran/);
    }
    await until(() => worker.cancelled.length === 2);
    for (const i of [0, 1]) expect((await generate(i, key)).status).toBe(401);
  });

  it("take the secret before a rotation until its grace is over, and end what runs by it with a grace of 0", async () => {
    await start([]);
    const made = await ask(0, "POST", "/v1/admin/keys", bearer(admin), { name: "shop" });
    const rotate = (grace: number) =>
      ask(0, "POST", `/v1/admin/keys/${made.body.id}/rotate`, bearer(admin), { grace_seconds: grace });
    const first = { text: made.body.key };
    const second = { text: (await rotate(3600)).body.key };
    expect(second.text).not.toBe(first.text);
    for (const key of [first, second]) expect((await generate(0, key)).status).toBe(200);

    worker.next({ kind: "hang" });
    const stream = generate(0, second);
    await worker.nextRequest();
    const third = { text: (await rotate(0)).body.key };
    expect((await stream).body.error.code).toBe("UNAUTHENTICATED");
    for (const key of [first, second]) expect((await generate(0, key)).status).toBe(401);
    await until(async () => (await generate(1, third)).status === 200);
  });

  it("book what was used once, for each tenant alone, at its price", async () => {
    const shop = testKey({ tenant: "shop" });
    const press = testKey({ tenant: "press" });
    await start([{ id: "press", price_per_device_hour: 36 }], [admin, shop, press]);
    await Promise.all([...Array(6).keys()].map((i) => generate(i, shop, { num_images: 2 })));
    await generate(0, press);
    await until(async () => (await usageOf(press)).total.requests === 1);
    await until(async () => (await usageOf(shop)).total.requests === 6);
    const mine = await usageOf(shop, "?group_by=key,model");
    expect(mine).toMatchObject({ tenant: "shop", currency: "EUR" });
    expect(mine.rows).toEqual([{ key: shop.id, model: "atelier-tiny", ...mine.total }]);
    expect(mine.total).toMatchObject({ requests: 6, images: 12, cached_images: 0 });
    // The fake worker says 9 ms of each: 3.6 EUR an hour are 0.001 EUR a second.
    expect(mine.total.device_seconds).toBeCloseTo(6 * 0.009);
    expect(mine.total.cost).toBeCloseTo(6 * 0.000009);
    expect(mine.total.cost_per_image).toBeCloseTo(0.0000045);
    expect((await usageOf(press)).total.cost).toBeCloseTo(0.00009);

    expect((await ask(0, "GET", "/v1/usage?tenant=press", bearer(shop))).body.error).toMatchObject({
      code: "FORBIDDEN",
      field: "tenant",
    });
    expect((await ask(0, "GET", "/v1/usage?tenant=*", bearer(shop))).status).toBe(403);
    const all = await usageOf(admin, "?tenant=*&group_by=tenant");
    expect(all.rows.map(({ tenant, images }: { tenant: string; images: number }) => [tenant, images])).toEqual([
      ["press", 1],
      ["shop", 12],
    ]);
  });

  it("go on by limits of their own while Redis is away, with the keys that they knew, and book it all later", async () => {
    const user = testKey({ tenant: "shop" });
    await start([{ id: "shop", requests_per_minute: 10 }], [admin, user]);
    const made = await ask(0, "POST", "/v1/admin/keys", bearer(admin), { name: "kept in Redis" });
    await until(async () => (await ask(1, "GET", "/v1/models", bearer({ text: made.body.key }))).status === 200);
    redis.pause();
    const answers = await many(60, user);
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(20);
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(40);
    for (const i of [0, 1]) {
      expect((await generate(i, { text: made.body.key })).status).toBe(200);
      expect((await ask(i, "GET", "/readyz", {})).status).toBe(200);
    }
    const refused = await ask(0, "POST", "/v1/admin/keys", bearer(admin), { name: "late" });
    expect([refused.status, refused.body.error.code]).toEqual([503, "OVERLOADED"]);
    expect((await ask(0, "GET", "/v1/usage", bearer(user))).status).toBe(503);
    redis.resume();
    await until(async () => (await usageOf(user)).total?.requests === 20);
  });

  it("start without Redis, take what is configured, and do not take an unknown key for a wrong one", async () => {
    const stopped = redis.url;
    await redis.stop();
    try {
      const user = testKey();
      const env = { ATELIER_REDIS: stopped, ATELIER_KEYS: keysJson([user]) };
      gateways = [await startGateway([worker.address], env)];
      await gateways[0]!.until(allReady);
      expect((await generate(0, user)).status).toBe(200);
      const other = await generate(0, testKey());
      expect([other.status, other.headers.get("retry-after")]).toEqual([503, "2"]);
    } finally {
      await redis.start();
    }
  });

  it("free the places of a gateway that was killed", async () => {
    const user = testKey({ tenant: "shop" });
    const keys = keysJson([user], [{ id: "shop", concurrent_requests: 2 }]);
    await start([{ id: "shop", concurrent_requests: 2 }], [admin, user]);
    const doomed = await spawnGateway({
      ATELIER_WORKERS: worker.address,
      ATELIER_REDIS: redis.url,
      ATELIER_KEYS: keys,
    });
    worker.next({ kind: "hang" }, { kind: "hang" });
    const lost = [1, 2].map((seed) =>
      fetch(`${doomed.url}/generate`, {
        method: "POST",
        headers: { ...bearer(user), "content-type": "application/json" },
        body: JSON.stringify({ prompt: "x", seed }),
      }).catch(() => "lost"),
    );
    await until(() => worker.requests.length === 2);
    expect((await generate(0, user)).status).toBe(429);
    doomed.child.kill("SIGKILL");
    expect(await Promise.all(lost)).toEqual(["lost", "lost"]);
    await until(async () => (await generate(1, user)).status === 200, 15_000);
  });
});
