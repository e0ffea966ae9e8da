import { setTimeout as sleep } from "node:timers/promises";
import { type RedisLink, RedisStore, type SharedStore, StoreUnavailable } from "@atelier/gateway/shared";
import { describe, expect, it } from "vitest";
import { atEnd, running, until } from "../support/ends.ts";
import { type RedisProcess, startRedisCluster, startRedisSentinels } from "../support/redis.ts";
import { type OpenLink, openRedisLink } from "../support/redis-link.ts";

const LIFE = { ttlMs: 60_000 };

describe("a failover", () => {
  it("of a cluster's master is over within seconds for its keys and for subscriptions, and is not felt by other keys", async () => {
    const cluster = await running(startRedisCluster());
    const { store, link } = await linkTo(cluster.url, { timeoutMs: 1_000 });
    for (let i = 0; i < 30; i++) await store.set(String(i), String(i), LIFE);
    const heard: string[] = [];
    store.subscribe("news", (message) => heard.push(message));
    const [lost, others] = await keysByMaster(cluster.nodes[0]!, link, 30);
    let over = false;
    const failingOver = cluster.failOver(link.key(lost[0]!)).then(() => {
      over = true;
    });
    while (!over) for (const i of others) expect(String(await store.get(i))).toBe(i);
    await failingOver;
    for (const i of lost) expect(String(await untilAnswered(() => store.get(i)))).toBe(i);
    await until(async () => {
      await store.publish("news", "after").catch(() => {});
      return heard.includes("after");
    }, 12_000);
  });

  it("by sentinels brings the new master into use, with what it had", async () => {
    const group = await running(startRedisSentinels());
    const { store, link } = await linkTo(group.url);
    await store.set("a", "1", LIFE);
    await group.nodes[0]!.client.wait(1, 1_000);
    await group.failOver("");
    expect(String(await untilAnswered(() => store.get("a")))).toBe("1");
    await untilAnswered(() => store.set("a", "2", LIFE));
    expect(String(await group.nodes[1]!.client.get(link.key("a")))).toBe("2");
  });
});

/** 0 to `count` as keys: those that lie on one master with the first, and those that do not. */
async function keysByMaster(
  { client }: RedisProcess,
  link: RedisLink,
  count: number,
): Promise<[same: string[], others: string[]]> {
  const keys = Array.from({ length: count }, (_, i) => String(i));
  const slots = await Promise.all(keys.map((key) => client.cluster("KEYSLOT", link.key(key))));
  const masters = slots.map((slot) => Math.floor((Number(slot) * 3) / 16_384));
  return [keys.filter((_, i) => masters[i] === masters[0]), keys.filter((_, i) => masters[i] !== masters[0])];
}

async function linkTo(
  url: string,
  options: Parameters<typeof openRedisLink>[1] = {},
): Promise<OpenLink & { store: SharedStore }> {
  const open = await openRedisLink(url, options);
  atEnd(() => open.link.close());
  return { ...open, store: new RedisStore(open.link) };
}

async function untilAnswered<T>(ask: () => Promise<T>): Promise<T> {
  for (let i = 0; ; i++) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof StoreUnavailable) || i > 300) throw error;
      await sleep(30);
    }
  }
}
