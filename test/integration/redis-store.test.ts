import { setTimeout as sleep } from "node:timers/promises";
import { RedisStore } from "@atelier/gateway/shared";
import { describeSharedStore } from "@atelier/gateway/testing/shared-store";
import { startRedis } from "../support/redis.ts";
import { openRedisLink } from "../support/redis-link.ts";

describeSharedStore("RedisStore on a single server", async () => {
  const redis = await startRedis();
  const links = [await openRedisLink(redis.url), await openRedisLink(redis.url)];
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
});
