import { FakeWorker } from "@atelier/gateway/testing";
import { bearer, keysJson, testKey } from "@atelier/gateway/testing/keys";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import type { GenerateRequest } from "@atelier/proto";
import { describe, expect, it } from "vitest";
import { atEnd, running, until } from "../support/ends.ts";
import { type RedisProcess, startRedis, startRedisCluster } from "../support/redis.ts";

const SEEDED = { prompt: "国潮风T恤, 白色背景", seed: 7, width: 64, height: 64, steps: 4 };
const { seed: _seed, ...UNSEEDED } = SEEDED;
/** Every result is kept the first time. */
const KEEP_ALL = { ATELIER_CACHE_MIN_ASKS: "1" };

describe("the exact cache of two gateways on one Redis", () => {
  it("has one picture made for fifty who ask for the same at once, at either, and gives all of them that one", async () => {
    const { ask, worker } = await twoGateways();
    const gate = Promise.withResolvers<void>();
    worker.usually = { kind: "answer", after: gate.promise };
    const asked = Array.from({ length: 50 }, (_, i) => ask(i % 2, SEEDED));
    await until(() => worker.requests.length > 0);
    await pause(400);
    gate.resolve();
    const answers = await Promise.all(asked);
    expect(worker.requests).toHaveLength(1);
    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
    expect(counted(answers)).toEqual({ miss: 1, shared: 49 });
    const bytes = answers.map(({ body }) => body.toString("base64"));
    expect(new Set(bytes).size).toBe(1);
  });

  it("keeps nothing that was asked once, hands it over where another gateway waits all the same, and keeps what is asked twice", async () => {
    const { ask, worker, redis } = await twoGateways({ ATELIER_CACHE_MIN_ASKS: "3" });
    const gate = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: gate.promise });
    const both = [ask(0, SEEDED), ask(1, SEEDED)];
    await until(async () => (await redis.client.keys("atelier:cache:flight:*")).length === 1);
    const [lease] = await redis.client.keys("atelier:cache:flight:*");
    await until(async () => String(await redis.client.get(lease!)).endsWith(" wanted"));
    gate.resolve();
    expect((await Promise.all(both)).map(({ outcome }) => outcome).sort()).toEqual(["miss", "shared"]);
    expect(await redis.client.keys("atelier:cache:value:*")).toEqual([]);
    expect(await redis.client.keys("atelier:cache:handed:*")).toHaveLength(1);

    expect((await ask(0, SEEDED)).outcome).toBe("shared"); // the third time: it is kept
    await until(async () => (await redis.client.keys("atelier:cache:value:*")).length === 1);
    expect((await ask(1, SEEDED)).outcome).toBe("hit"); // from Redis
    expect((await ask(1, SEEDED)).outcome).toBe("hit"); // from memory
    expect((await ask(0, SEEDED)).outcome).toBe("hit");
    expect(worker.requests).toHaveLength(1);
  });

  it("waits for a gateway that died no longer than its lease", async () => {
    const { ask, worker, redis } = await twoGateways({ ATELIER_LEASE_MS: "900" });
    worker.usually = { kind: "hang" };
    void ask(0, SEEDED).catch(() => {});
    await until(() => worker.requests.length === 1);
    const [lease] = await redis.client.keys("atelier:cache:flight:*");
    // As a process that is gone: nobody renews. Its name stays in the lease.
    const holder = String(await redis.client.get(lease!));
    await redis.client.set(lease!, holder.replace("flight_", "flight_gone"), "PX", 900);
    worker.usually = { kind: "answer" };
    const startMs = Date.now();
    const answer = await ask(1, SEEDED);
    expect(answer).toMatchObject({ status: 200, outcome: "miss" });
    expect(Date.now() - startMs).toBeLessThan(900 + 1_000);
    expect(worker.requests).toHaveLength(2);
  });

  it("keeps a lease while the making takes longer than it, and gives it back after a failure", async () => {
    const { ask, worker, redis } = await twoGateways({ ATELIER_LEASE_MS: "300", ATELIER_ATTEMPTS_MAX: "1" });
    const gate = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: gate.promise });
    const first = ask(0, SEEDED);
    await until(() => worker.requests.length === 1);
    const second = ask(1, SEEDED);
    await pause(1_000);
    expect(worker.requests).toHaveLength(1);
    gate.resolve();
    expect((await first).outcome).toBe("miss");
    expect((await second).outcome).toBe("shared");
    await until(async () => (await redis.client.keys("atelier:cache:flight:*")).length === 0);
  });

  it.each([
    ["one bit of it is flipped", (value: Buffer) => flipped(value, value.length - 5)],
    ["its receipt was changed", (value: Buffer) => flipped(value, 60)],
    ["its end is missing", (value: Buffer) => value.subarray(0, value.length - 1)],
    ["it is empty", () => Buffer.alloc(0)],
    ["it is something else", () => Buffer.from("hello, this is no picture at all, but is long enough to be looked at")],
  ])("takes a value for none, deletes it and counts it where %s", async (_what, damage) => {
    const { ask, gateways, worker, redis } = await twoGateways(KEEP_ALL);
    const made = await ask(0, SEEDED);
    const key = await onlyValue(redis);
    await redis.client.set(key, damage((await redis.client.getBuffer(key))!));
    worker.usually = { kind: "hang" };
    void ask(1, SEEDED).catch(() => {});
    await until(() => worker.requests.length === 2);
    expect(await redis.client.exists(key)).toBe(0);
    expect(await metrics(gateways[1]!)).toMatch(/cache_damaged_total\{.*\} 1\n/);
    expect((await ask(0, SEEDED)).body).toEqual(made.body); // the other has it at hand
  });

  it("takes another key's value for none", async () => {
    const { ask, worker, redis } = await twoGateways(KEEP_ALL);
    await ask(0, SEEDED);
    const key = await onlyValue(redis);
    await ask(0, { ...SEEDED, seed: 8 });
    await until(async () => (await redis.client.keys("atelier:cache:value:*")).length === 2);
    const [other] = (await redis.client.keys("atelier:cache:value:*")).filter((found) => found !== key);
    await redis.client.set(key, (await redis.client.getBuffer(other!))!);
    const answer = await ask(1, SEEDED);
    expect([answer.outcome, answer.seed]).toEqual(["miss", "7"]);
    expect(worker.requests).toHaveLength(3);
  });

  it("goes on without Redis: what is at hand is served, the rest is made, each at its own gateway", async () => {
    const { ask, worker, redis } = await twoGateways(KEEP_ALL);
    await ask(0, SEEDED);
    const gate = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: gate.promise });
    const inFlight = [ask(0, { ...SEEDED, seed: 8 }), ask(1, { ...SEEDED, seed: 8 })];
    await until(() => worker.requests.length === 2);
    await redis.stop();
    gate.resolve();
    expect((await Promise.all(inFlight)).map(({ status }) => status)).toEqual([200, 200]);
    expect((await ask(0, SEEDED)).outcome).toBe("hit");
    expect((await ask(1, SEEDED)).outcome).toBe("miss");
    expect((await ask(1, SEEDED)).outcome).toBe("hit");

    await redis.start();
    let seed = 100;
    await until(async () => {
      expect((await ask(1, { ...SEEDED, seed: seed++ })).outcome).toBe("miss");
      return (await values(redis)) > 0;
    });
  });

  it("serves what it has made where Redis is full", async () => {
    const redis = await running(startRedis({ args: ["--maxmemory", "1500kb", "--maxmemory-policy", "noeviction"] }));
    const { ask, worker } = await twoGateways(KEEP_ALL, redis);
    worker.usually = { kind: "answer", data: Buffer.alloc(600_000, 1) };
    const outcomes: (string | undefined)[] = [];
    for (let seed = 0; seed < 6; seed++) outcomes.push((await ask(0, { ...SEEDED, seed })).outcome);
    expect(outcomes).toEqual(Array(6).fill("miss"));
    expect((await ask(0, { ...SEEDED, seed: 5 })).outcome).toBe("hit");
  });

  it("keeps to its budget in Redis: what nobody used for the longest goes", async () => {
    const budget = { ...KEEP_ALL, ATELIER_CACHE_REDIS_MEMORY: "2500000", ATELIER_CACHE_MEMORY: "0" };
    const { ask, worker, redis } = await twoGateways(budget);
    worker.usually = { kind: "answer", data: Buffer.alloc(600_000, 1) };
    for (let seed = 0; seed < 4; seed++) {
      await ask(0, { ...SEEDED, seed });
      await until(async () => (await values(redis)) === seed + 1);
    }
    expect((await ask(1, { ...SEEDED, seed: 0 })).outcome).toBe("hit");
    await pause(50);
    await ask(0, { ...SEEDED, seed: 4 });
    await until(async () => (await ask(1, { ...SEEDED, seed: 4 })).outcome === "hit");
    await until(async () => (await values(redis)) === 4);
    expect((await ask(1, { ...SEEDED, seed: 0 })).outcome).toBe("hit");
    expect((await ask(1, { ...SEEDED, seed: 1 })).outcome).toBe("miss");
  });

  it("keeps tenants apart, in the cache and in flight, unless they are to share", async () => {
    const [one, two] = [testKey({ tenant: "one" }), testKey({ tenant: "two" })];
    const keys = { ...KEEP_ALL, ATELIER_KEYS: keysJson([one, two]) };
    const apart = await twoGateways(keys);
    const gate = Promise.withResolvers<void>();
    apart.worker.usually = { kind: "answer", after: gate.promise };
    const atOnce = [
      apart.ask(0, SEEDED, bearer(one)),
      apart.ask(0, SEEDED, bearer(two)),
      apart.ask(1, SEEDED, bearer(two)),
    ];
    await until(() => apart.worker.requests.length === 2);
    gate.resolve();
    expect(counted(await Promise.all(atOnce))).toEqual({ miss: 2, shared: 1 });
    expect(new Set(apart.worker.requests.map(({ order }) => order?.tenant))).toEqual(new Set(["one", "two"]));
    expect((await apart.ask(0, { ...SEEDED, seed: 8 }, bearer(one))).outcome).toBe("miss");
    expect((await apart.ask(0, { ...SEEDED, seed: 8 }, bearer(two))).outcome).toBe("miss");

    const together = await twoGateways({ ...keys, ATELIER_CACHE_SCOPE: "shared" });
    expect((await together.ask(0, SEEDED, bearer(one))).outcome).toBe("miss");
    expect((await together.ask(0, SEEDED, bearer(two))).outcome).toBe("hit");
  });

  it("says of a cached picture that it is simulated, as of a new one", async () => {
    const { ask } = await twoGateways(KEEP_ALL);
    for (const outcome of ["miss", "hit"]) {
      const answer = await ask(0, SEEDED);
      expect([answer.outcome, answer.simulated]).toEqual([outcome, "true"]);
    }
    const json = await ask(1, SEEDED, { accept: "application/json" });
    expect(JSON.parse(json.body.toString()).receipt).toMatchObject({ simulated: true, cache: "hit", seed: 7 });
    expect((await ask(1, SEEDED, { accept: "application/json" })).body).toEqual(json.body);
  });

  it("gives a request without a seed one of a few pictures, the same few at every gateway", async () => {
    const { ask, worker } = await twoGateways({ ...KEEP_ALL, ATELIER_CACHE_VARIANTS: "3" });
    const seeds = new Set<string>();
    for (let i = 0; i < 40; i++) seeds.add((await ask(i % 2, UNSEEDED)).seed);
    expect(seeds.size).toBe(3);
    expect(worker.requests).toHaveLength(3);
    const [variant] = [...seeds];
    expect((await ask(0, { ...SEEDED, seed: Number(variant) })).outcome).toBe("hit");
  });

  it("drops what is purged at every gateway, and keeps nothing that was being made meanwhile", async () => {
    const { ask, gateways, worker, redis } = await twoGateways(KEEP_ALL);
    const other = { ...SEEDED, prompt: "a red mug" };
    for (const gateway of [0, 1]) for (const body of [SEEDED, other]) await ask(gateway, body);
    expect(worker.requests).toHaveLength(2);
    const gate = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: gate.promise });
    const begun = ask(0, { ...SEEDED, seed: 8 });
    await until(() => worker.requests.length === 3);

    const purged = await purge(gateways[0]!, { prompt_prefix: "国潮" });
    expect(purged).toEqual({ status: 200, body: { in_memory: 1, in_redis: 1 } });
    gate.resolve();
    await begun;
    expect((await ask(0, other)).outcome).toBe("hit");
    await until(async () => (await size(gateways[1]!)).memory.results === 1);
    expect((await ask(1, other)).outcome).toBe("hit");
    expect(await values(redis)).toBe(1);
    expect((await ask(1, SEEDED)).outcome).toBe("miss");
    expect((await ask(0, { ...SEEDED, seed: 8 })).outcome).toBe("miss");
    expect(await metrics(gateways[0]!)).toMatch(/cache_results_total\{outcome="purged",.*\} 1\n/);
  });

  it("purges at a gateway that missed the message", async () => {
    const { ask, gateways, redis } = await twoGateways(KEEP_ALL);
    for (const gateway of [0, 1]) await ask(gateway, SEEDED);
    await redis.client.call("CLIENT", "KILL", "TYPE", "pubsub");
    await purge(gateways[0]!, { model: "atelier-tiny" });
    await until(async () => (await size(gateways[1]!)).memory.results === 0);
    expect((await ask(1, SEEDED)).outcome).toBe("miss");
  });

  it("lets an operator purge its own tenant, and an admin any", async () => {
    const user = testKey({ tenant: "one" });
    const operator = testKey({ tenant: "one", role: "operator" });
    const admin = testKey({ tenant: "two", role: "admin" });
    const stranger = testKey({ tenant: "two" });
    const env = { ...KEEP_ALL, ATELIER_KEYS: keysJson([user, operator, admin, stranger]) };
    const { ask, gateways } = await twoGateways(env);
    const at = gateways[0]!;
    for (const key of [user, stranger]) await ask(0, SEEDED, bearer(key));

    expect((await purge(at, { all: true }, bearer(user))).status).toBe(403);
    expect((await purge(at, { tenant: "two", model: "atelier-tiny" }, bearer(operator))).status).toBe(403);
    expect((await purge(at, { all: true }, bearer(operator))).body).toEqual({ in_memory: 1, in_redis: 1 });
    expect((await ask(0, SEEDED, bearer(stranger))).outcome).toBe("hit");
    expect((await ask(0, SEEDED, bearer(user))).outcome).toBe("miss");
    expect((await purge(at, { tenant: "one" }, bearer(admin))).body).toEqual({ in_memory: 1, in_redis: 1 });
    expect((await purge(at, { all: true }, bearer(admin))).body).toEqual({ in_memory: 1, in_redis: 1 });
  });

  it("does all that on a Redis Cluster", async () => {
    const cluster = await running(startRedisCluster());
    const { ask, gateways } = await twoGateways(KEEP_ALL, cluster);
    for (const seed of [1, 2, 3]) expect((await ask(0, { ...SEEDED, seed })).outcome).toBe("miss");
    await until(async () => (await size(gateways[1]!)).redis?.results === 3);
    for (const seed of [1, 2, 3]) expect((await ask(1, { ...SEEDED, seed })).outcome).toBe("hit");
    expect((await purge(gateways[0]!, { all: true })).body).toEqual({ in_memory: 3, in_redis: 3 });
    await until(async () => (await size(gateways[1]!)).memory.results === 0);
    expect((await ask(1, { ...SEEDED, seed: 1 })).outcome).toBe("miss");
  });

  it("says so where a purge cannot reach the others, and holds to it here", async () => {
    const { ask, gateways, redis } = await twoGateways(KEEP_ALL);
    await ask(0, SEEDED);
    await redis.stop();
    const refused = await purge(gateways[0]!, { all: true });
    expect(refused).toMatchObject({ status: 503, body: { error: { code: "OVERLOADED" } } });
    expect((await ask(0, SEEDED)).outcome).toBe("miss");
  });
});

interface Answer {
  readonly status: number;
  readonly outcome: string | undefined;
  readonly seed: string;
  readonly simulated: string | null;
  readonly body: Buffer;
}

interface TwoGateways<R> {
  readonly redis: R;
  readonly worker: FakeWorker & { readonly requests: GenerateRequest[] };
  readonly gateways: readonly TestGateway[];
  /** POST /generate at one of them. */
  ask(gateway: number, body: object, headers?: Readonly<Record<string, string>>): Promise<Answer>;
}

function twoGateways(env?: Readonly<Record<string, string>>): Promise<TwoGateways<RedisProcess>>;
function twoGateways<R extends { url: string }>(
  env: Readonly<Record<string, string>>,
  redis: R,
): Promise<TwoGateways<R>>;
async function twoGateways(
  env: Readonly<Record<string, string>> = {},
  given?: { url: string },
): Promise<TwoGateways<{ url: string }>> {
  const redis = given ?? (await running(startRedis()));
  const worker = await running(FakeWorker.start());
  const settings = { ATELIER_CACHE_SCOPE: "tenant", ATELIER_REDIS: redis.url, ...env };
  const gateways = await Promise.all(
    [0, 1].map(async () => {
      const gateway = await startGateway([worker.address], settings);
      atEnd(() => gateway.stop({ timeoutMs: 10 }));
      await gateway.until(allReady);
      return gateway;
    }),
  );
  const gone = new AbortController();
  atEnd(() => gone.abort());
  const ask: TwoGateways<unknown>["ask"] = async (gateway, body, headers = {}) => {
    const response = await fetch(`${gateways[gateway]!.url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "image/png", ...headers },
      body: JSON.stringify(body),
      signal: gone.signal,
    });
    return {
      status: response.status,
      outcome: response.headers.get("x-atelier-cache") ?? undefined,
      seed: response.headers.get("x-atelier-seed") ?? "",
      simulated: response.headers.get("x-atelier-simulated"),
      body: Buffer.from(await response.arrayBuffer()),
    };
  };
  return { redis, worker, gateways, ask };
}

function counted(answers: readonly Answer[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { outcome = "none" } of answers) counts[outcome] = (counts[outcome] ?? 0) + 1;
  return counts;
}

async function purge(gateway: TestGateway, body: object, headers: Readonly<Record<string, string>> = {}) {
  const response = await fetch(`${gateway.url}/v1/admin/cache/purge`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
}

interface CacheSize {
  readonly memory: { readonly results: number };
  readonly redis: { readonly results: number } | null;
}

async function size(gateway: TestGateway): Promise<CacheSize> {
  return (await (await fetch(`${gateway.url}/v1/admin/cache`)).json()) as CacheSize;
}

async function metrics(gateway: TestGateway): Promise<string> {
  return (await fetch(`${gateway.url}/metrics`)).text();
}

async function values(redis: RedisProcess): Promise<number> {
  return (await redis.client.keys("atelier:cache:value:*")).length;
}

async function onlyValue(redis: RedisProcess): Promise<string> {
  await until(async () => (await values(redis)) === 1);
  return (await redis.client.keys("atelier:cache:value:*"))[0]!;
}

function flipped(value: Buffer, at: number): Buffer {
  const copy = Buffer.from(value);
  copy[at]! ^= 1;
  return copy;
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
