import { FakeWorker } from "@atelier/gateway/testing";
import { bearer, keysJson, testKey } from "@atelier/gateway/testing/keys";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { Redis } from "ioredis";
import { describe, expect, it } from "vitest";
import { running } from "../support/ends.ts";
import { type BadNetwork, badNetworkTo } from "../support/network-fault.ts";
import { type RedisProcess, startRedis } from "../support/redis.ts";

/** Of a tenant with limits, all far away. */
const key = testKey({ tenant: "shop" });
const LIMITS = { id: "shop", images_per_minute: 100_000, concurrent_requests: 10_000, images_per_month: 1_000_000 };

interface Fault {
  readonly what: string;
  harm(redis: RedisProcess, network: BadNetwork): Promise<void>;
}

const FAULTS: readonly Fault[] = [
  { what: "is well", harm: async () => {} },
  { what: "answers after 200 ms", harm: (_redis, network) => network.delay(200) },
  { what: "answers too late", harm: (_redis, network) => network.delay(400) },
  { what: "hangs", harm: async (redis) => redis.pause() },
  { what: "is behind a network that swallows everything", harm: (_redis, network) => network.silence() },
  { what: "is cut off", harm: (_redis, network) => network.cut() },
  { what: "is gone with all that it held", harm: (redis) => redis.stop() },
  {
    what: "is full",
    harm: async ({ client }) => {
      await client.config("SET", "maxmemory", "1");
      await client.config("SET", "maxmemory-policy", "noeviction");
    },
  },
  {
    what: "has only values of the wrong kind",
    harm: ({ url }) => spoil(url, (client, key) => client.multi().del(key).lpush(key, "x").pexpire(key, 60_000).exec()),
  },
  {
    what: "has only values that are not ours",
    harm: ({ url }) => spoil(url, (client, key) => client.set(key, "\u0000not ours", "KEEPTTL")),
  },
];

describe("two gateways whose Redis", () => {
  it.each(FAULTS)("$what answer every request with its own picture, before, meanwhile and after", async ({ harm }) => {
    const redis = await running(startRedis());
    const network = await running(badNetworkTo(redis.port));
    const worker = await running(FakeWorker.start());
    const env = { ATELIER_REDIS: `redis://127.0.0.1:${network.port}`, ATELIER_KEYS: keysJson([key], [LIMITS]) };
    const gateways = await Promise.all([1, 2].map(() => running(startGateway([worker.address], env))));
    await Promise.all(gateways.map((gateway) => gateway.until(allReady)));

    await askAll(gateways);
    await harm(redis, network);
    // Again, which may be known by now, and what nobody has asked before.
    await askAll(gateways);
    await askAll(gateways, "new ");
    redis.resume();
    await network.heal();
    await askAll(gateways);
    expect(gateways.flatMap(({ bugs }) => bugs)).toEqual([]);
  });
});

/** Several prompts at once, each twice at either gateway, with an idempotency key and without. */
async function askAll(gateways: readonly TestGateway[], prefix = ""): Promise<void> {
  const asked = ["a red mug", "黄色雨伞", "a sofa"].flatMap((prompt, i) =>
    gateways.flatMap((gateway) =>
      [undefined, `${prefix}key-${i}`.replace(" ", "-")].flatMap((idempotencyKey) => [
        { gateway, idempotencyKey, prompt: prefix + prompt, seed: i },
        { gateway, idempotencyKey, prompt: prefix + prompt, seed: i },
      ]),
    ),
  );
  await Promise.all(
    asked.map(async ({ gateway, idempotencyKey, prompt, seed }) => {
      const response = await fetch(`${gateway.url}/v1/generations`, {
        method: "POST",
        headers: {
          "content-type": "application/json",
          ...bearer(key),
          ...(idempotencyKey !== undefined && { "idempotency-key": idempotencyKey }),
        },
        body: JSON.stringify({ prompt, seed, width: 256, height: 256 }),
      });
      const body = (await response.json()) as { receipt: { prompt: string; seed: number } };
      expect(response.status, JSON.stringify(body)).toBe(200);
      expect(body.receipt).toMatchObject({ prompt, seed });
    }),
  );
}

/** Puts something else under every key that there is. */
async function spoil(url: string, write: (client: Redis, key: string) => Promise<unknown>): Promise<void> {
  const client = new Redis(url);
  try {
    const keys = await client.keys("*");
    expect(keys.length).toBeGreaterThan(0);
    for (const key of keys) await write(client, key);
  } finally {
    client.disconnect();
  }
}
