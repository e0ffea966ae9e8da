import { setTimeout as sleep } from "node:timers/promises";
import { RedisStore } from "@atelier/gateway/shared";
import { describeSharedStore, type StoreUnderTest } from "@atelier/gateway/testing/shared-store";
import { startRedis, startRedisCluster, startRedisSentinels } from "../support/redis.ts";
import { openRedisLink } from "../support/redis-link.ts";

describeSharedStore("RedisStore on one server with a password", async () => {
  const redis = await startRedis({ password: "p@ss:wörd/%" });
  return storesOn(redis);
});

describeSharedStore("RedisStore on a server with TLS that asks for a certificate", async () => {
  const redis = await startRedis({ tls: true });
  return storesOn(redis, { tls: redis.files });
});

describeSharedStore("RedisStore on a cluster", async () => storesOn(await startRedisCluster()));

describeSharedStore("RedisStore on a master that sentinels name", async () => storesOn(await startRedisSentinels()));

describeSharedStore("RedisStore on a cluster with TLS", async () => {
  const cluster = await startRedisCluster({ tls: true });
  return storesOn(cluster, { tls: cluster.files });
});

describeSharedStore("RedisStore on a master with TLS that sentinels with TLS name", async () => {
  const group = await startRedisSentinels({ tls: true });
  return storesOn(group, { tls: group.files });
});

async function storesOn(
  redis: { url: string; stop(): Promise<void> },
  options: Parameters<typeof openRedisLink>[1] = {},
): Promise<StoreUnderTest> {
  const links = [await openRedisLink(redis.url, options), await openRedisLink(redis.url, options)];
  const [store, elsewhere] = links.map(({ link }) => new RedisStore(link));
  return {
    store: store!,
    elsewhere: elsewhere!,
    passMs: async (ms) => {
      await sleep(ms);
    },
    stop: async () => {
      for (const { link } of links) link.close();
      await redis.stop();
    },
  };
}
