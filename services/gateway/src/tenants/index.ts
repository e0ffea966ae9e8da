/** For tests of this folder's adapters against real services. */

export { type Accounts, dayOf, type Entry, type Lease, LIMIT_NAMES, type Limits, type UsageRow } from "./accounts.ts";
export { TenantDirectory } from "./directory.ts";
export { redisKeyStore } from "./key-store-redis.ts";
export { MemoryLimits } from "./memory-limits.ts";
export { RedisAccounts } from "./redis-accounts.ts";
