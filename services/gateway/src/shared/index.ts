/** For tests of this package's adapters against real services. */

export { MemoryStore } from "./memory-store.ts";
export { parseRedisAddress } from "./redis-address.ts";
export { RedisLink, type RedisWorld } from "./redis-link.ts";
export { createRedisMetrics } from "./redis-metrics.ts";
export { RedisStore } from "./redis-store.ts";
export { type SharedStore, StoreUnavailable } from "./shared-store.ts";
