import type { Clock, Random } from "@atelier/core";
import type { Registry } from "@atelier/telemetry";
import type { CacheConfig } from "../config.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type { RedisLink } from "../shared/redis-link.ts";
import type { SharedStore } from "../shared/shared-store.ts";
import { OwnAskCounts } from "./ask-counts.ts";
import { createCacheMetrics } from "./cache-metrics.ts";
import { ExactCache } from "./exact-cache.ts";
import { MemoryResults } from "./memory-results.ts";
import { ModelDigests } from "./model-digests.ts";
import { RedisAskCounts } from "./redis-ask-counts.ts";
import { RedisResults } from "./redis-results.ts";

export interface CacheWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly config: CacheConfig;
  readonly fleet: Pick<Fleet, "views" | "onChange">;
  readonly store: SharedStore;
  /** Undefined: this gateway is alone. */
  readonly redis: RedisLink | undefined;
  readonly registry: Registry;
}

/** The cache as the configuration has it: in this process, and behind that in Redis where there is one. */
export function openCache({ clock, random, config, fleet, store, redis, registry }: CacheWorld): ExactCache {
  const memory = new MemoryResults(clock, { bytesMax: config.memoryBytesMax });
  const digests = new ModelDigests(fleet);
  const window = { windowMs: config.askWindowMs };
  return new ExactCache({
    clock,
    random,
    config,
    memory,
    store,
    modelDigest: (model) => digests.of(model),
    ownAsks: new OwnAskCounts(clock, window),
    shared: redis && {
      results: new RedisResults(redis, { clock, bytesMax: config.redisBytesMax }),
      asks: new RedisAskCounts(redis, { clock, ...window }),
    },
    metrics: createCacheMetrics(registry, memory),
  });
}
