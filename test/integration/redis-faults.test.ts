import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { RedisStore, type SharedStore, StoreUnavailable } from "@atelier/gateway/shared";
import { FakeWorker } from "@atelier/gateway/testing";
import { allReady, startGateway } from "@atelier/gateway/testing/start-gateway";
import { describe, expect, it } from "vitest";
import { TestAuthority, writeCertificate } from "../support/certificates.ts";
import { atEnd, running, until } from "../support/ends.ts";
import { type BadNetwork, badNetworkTo, relayTo, toxiproxyAtHand, toxiproxyTo } from "../support/network-fault.ts";
import { type RedisProcess, startRedis } from "../support/redis.ts";
import { type OpenLink, openRedisLink } from "../support/redis-link.ts";

const LIFE = { ttlMs: 60_000 };

describe("a gateway's connection to Redis", () => {
  it("opens where nothing listens, and is used from the moment that Redis is there", async () => {
    const redis = await running(startRedis());
    await redis.stop();
    const { link, logged, store } = await linkTo(redis.url);
    await expect(store.get("a")).rejects.toThrow(StoreUnavailable);
    expect(logged).toEqual([
      expect.stringMatching(/^warn: redis cannot be reached; going on without it \(.*ECONNREFUSED/),
    ]);
    expect(link.up).toBe(false);

    await redis.start();
    await until(() => link.up);
    await store.set("a", "1", LIFE);
    expect(String(await store.get("a"))).toBe("1");
    expect(logged.slice(1)).toEqual(["info: redis is connected"]);
  });

  it("rejects at once when Redis is gone, says so once, and comes back by itself", async () => {
    const redis = await running(startRedis());
    const { link, logged, store, registry } = await linkTo(redis.url);
    await store.set("a", "1", LIFE);
    await redis.stop();
    const rejected = await failures(store, 50);
    expect(rejected).toBe(50);
    expect(link.up).toBe(false);
    await redis.start();
    await until(() => link.up);
    await store.set("a", "2", LIFE);

    expect(logged).toEqual([
      "info: redis is connected",
      expect.stringMatching(/^warn: redis is lost; going on without it/),
      "info: redis is back",
    ]);
    const metrics = await registry.metrics();
    expect(metrics).toMatch(/atelier_gateway_redis_up\{.*\} 1/);
    expect(metrics).toMatch(/atelier_gateway_redis_failures_total\{kind="connection",.*\} [1-3]\n/);
    expect(metrics).toMatch(/atelier_gateway_redis_failures_total\{kind="open",.*\} 4[7-9]\n/);
  });

  it("finds out about a loss by itself when nobody asks anything", async () => {
    const redis = await running(startRedis());
    const { link } = await linkTo(redis.url);
    await redis.stop();
    await until(() => !link.up);
    await redis.start();
    await until(() => link.up);
  });

  it("makes three callers wait for one that hangs, and nobody after them; what it missed is not sent later", async () => {
    const redis = await running(startRedis());
    const { link, store, registry } = await linkTo(redis.url, { timeoutMs: 60 });
    await store.set("a", "1", LIFE);
    redis.pause();
    expect(await failures(store, 20, "written while it hung")).toBe(20);
    expect(link.up).toBe(false);
    redis.resume();
    await until(() => link.up);
    expect(await registry.metrics()).toMatch(/failures_total\{kind="timeout",.*\} 3\n/);
    // Three were on the wire when it hung, and may have been carried out; the other 17 never left.
    expect((await redis.client.keys("test:written*")).length).toBeLessThanOrEqual(3);
  });

  it("fails a write that finds it full, while it goes on reading, and says so once", async () => {
    const redis = await running(startRedis({ args: ["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"] }));
    const { link, logged, store, registry } = await linkTo(redis.url);
    await store.set("small", "1", LIFE);
    const big = Buffer.alloc(500_000);
    const written = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => store.set(`big ${i}`, big, LIFE)));
    const refused = written.filter((result) => result.status === "rejected");
    expect(refused.length).toBeGreaterThan(10);
    for (const { reason } of refused) expect(reason).toBeInstanceOf(StoreUnavailable);
    expect(String(await store.get("small"))).toBe("1");
    await expect(store.setIfAbsent("lease", big, LIFE)).rejects.toThrow(/OOM/);
    expect(link.up).toBe(true);
    expect(logged.slice(1)).toEqual([expect.stringMatching(/^warn: redis refuses commands \(OOM/)]);
    expect(await registry.metrics()).toMatch(/failures_total\{kind="full"/);
  });

  it("does without one that wants another password, and never writes the password down", async () => {
    const redis = await running(startRedis({ password: "right" }));
    const { link, logged, store } = await linkTo(redis.url.replace("right", "wr0ng"));
    const failure = await store.get("a").catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(StoreUnavailable);
    expect(link.up).toBe(false);
    expect(logged.join()).toMatch(/WRONGPASS/);
    expect(logged.join() + String(failure)).not.toMatch(/wr0ng/);
  });

  it("does without one that answers in clear where TLS is asked for, or that shows a certificate of a stranger", async () => {
    const plain = await running(startRedis());
    const one = await linkTo(plain.url.replace("redis://", "rediss://"));
    expect(one.link.up).toBe(false);

    const secured = await running(startRedis({ tls: true }));
    const { cert, key } = secured.files;
    const stranger = await linkTo(secured.url, { tls: { cert, key } });
    expect(stranger.link.up).toBe(false);
    expect(stranger.logged.join()).toMatch(/certificate/);
  });

  it("takes up renewed certificates, of another authority too, with its next connection", async () => {
    const redis = await running(startRedis({ tls: true }));
    const folder = mkdtempSync(join(tmpdir(), "atelier-renewal-"));
    atEnd(() => rmSync(folder, { recursive: true }));
    const own = join(folder, "own");
    cpSync(dirname(redis.files.ca), own, { recursive: true });
    const tls = { ca: join(own, "redis-ca.pem"), cert: join(own, "redis-cert.pem"), key: join(own, "redis-key.pem") };
    const { link, store } = await linkTo(redis.url, { tls });
    await store.set("a", "1", LIFE);

    const next = writeCertificate(folder, "next", new TestAuthority("The next authority"));
    for (const name of ["ca", "cert", "key"] as const) cpSync(next[name], tls[name]);
    const renewal = ["tls-ca-cert-file", next.ca, "tls-cert-file", next.cert, "tls-key-file", next.key];
    await redis.client.call("CONFIG", "SET", ...renewal);
    await redis.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    await until(async () => (await store.get("a").catch(() => undefined)) !== undefined);
    expect(link.up).toBe(true);
  });

  it("does not open with certificate files that are not there", async () => {
    const missing = linkTo("rediss://127.0.0.1:1", { tls: { ca: "/nowhere/ca.pem" } });
    await expect(missing).rejects.toThrow("ATELIER_REDIS_CA=/nowhere/ca.pem: cannot be read (ENOENT)");
  });

  it("subscribes again after Redis was away, also to what was asked for meanwhile", async () => {
    const redis = await running(startRedis());
    const { link, store } = await linkTo(redis.url);
    const heard: string[] = [];
    store.subscribe("before", (message) => heard.push(message));
    await redis.stop();
    store.subscribe("meanwhile", (message) => heard.push(message));
    await redis.start();
    await until(() => link.up);
    await until(async () => {
      await store.publish("before", "old").catch(() => {});
      await store.publish("meanwhile", "new").catch(() => {});
      return heard.includes("old") && heard.includes("new");
    });
  });
});

describe("a gateway whose Redis is down when it starts", () => {
  it("serves, says that it is ready, and shows the loss in its metrics", async () => {
    const redis = await running(startRedis());
    await redis.stop();
    const worker = await running(FakeWorker.start());
    const gateway = await running(startGateway([worker.address], { ATELIER_REDIS: redis.url }));
    await gateway.until(allReady);
    const ready = await fetch(`${gateway.url}/readyz`);
    expect(ready.status).toBe(200);
    const picture = await fetch(`${gateway.url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: "a red mug" }),
    });
    expect(picture.status).toBe(200);
    expect(await (await fetch(`${gateway.url}/metrics`)).text()).toMatch(/atelier_gateway_redis_up\{.*\} 0\n/);
  });
});

describe("Redis behind a bad network", async () => {
  const makers = [{ name: "the relay", make: relayTo }];
  if (await toxiproxyAtHand()) makers.push({ name: "toxiproxy", make: toxiproxyTo });

  it.each(makers)("answers late by $name, is silent, is cut off, and is back each time", async ({ make }) => {
    const redis = await running(startRedis());
    const network = await running(make(redis.port));
    const { link, store } = await linkTo(`redis://127.0.0.1:${network.port}`, { timeoutMs: 150 });
    await store.set("a", "1", LIFE);

    await network.delay(60);
    expect(String(await store.get("a"))).toBe("1");
    for (const harm of [() => network.delay(400), () => network.silence(), () => network.cut()]) {
      await harm();
      expect(await failures(store, 10)).toBe(10);
      expect(link.up).toBe(false);
      await network.heal();
      await until(() => link.up);
      expect(String(await store.get("a"))).toBe("1");
    }
  });

  it("is still asked when each answer takes 200 ms: slower, never wrong", async () => {
    const { store, link, network } = await linkOverNetwork();
    await network.delay(200);
    await store.set("a", "1", LIFE);
    const got = await Promise.all(Array.from({ length: 20 }, () => store.get("a")));
    expect(got.map(String)).toEqual(Array(20).fill("1"));
    expect(await store.setIfAbsent("a", "2", LIFE)).toBe(false);
    expect(link.up).toBe(true);
  });

  it("gives a late answer to nobody else", async () => {
    const { store, network } = await linkOverNetwork({ timeoutMs: 100 });
    for (let i = 0; i < 10; i++) await store.set(`key ${i}`, `value ${i}`, LIFE);
    await network.delay(130);
    await Promise.allSettled([store.get("key 0"), store.get("key 1")]);
    await network.heal();
    for (let i = 2; i < 10; i++) {
      const value = await store.get(`key ${i}`).catch(() => undefined);
      expect(value === undefined ? `value ${i}` : String(value)).toBe(`value ${i}`);
    }
  });
});

async function linkTo(
  url: string,
  options: Parameters<typeof openRedisLink>[1] = {},
): Promise<OpenLink & { store: SharedStore }> {
  const open = await openRedisLink(url, options);
  atEnd(() => open.link.close());
  return { ...open, store: new RedisStore(open.link) };
}

async function linkOverNetwork(
  options: Parameters<typeof openRedisLink>[1] = {},
): Promise<OpenLink & { store: SharedStore; network: BadNetwork; redis: RedisProcess }> {
  const redis = await running(startRedis());
  const network = await running(badNetworkTo(redis.port));
  return { ...(await linkTo(`redis://127.0.0.1:${network.port}`, options)), network, redis };
}

/** How many of `count` writes, one after another, were rejected as they should be. */
async function failures(store: SharedStore, count: number, key = "lost"): Promise<number> {
  let rejected = 0;
  for (let i = 0; i < count; i++) {
    const failure: unknown = await store.set(`${key} ${i}`, "x", LIFE).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (failure instanceof StoreUnavailable) rejected++;
    else if (failure !== undefined) throw failure;
  }
  return rejected;
}
