import type { Logger } from "@atelier/telemetry";
import type { RedisLink } from "../shared/redis-link.ts";
import { RedisScript } from "../shared/redis-store.ts";
import type { KeyStore } from "./key-store.ts";
import { readStoredKeys, readStoredTenants, storedText } from "./stored-records.ts";

const CHANGED = "keys-changed";

/** Only where the field still has the text that the caller knows. */
const REPLACE = new RedisScript(`
if redis.call("HGET", KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
return 1`);

const LATEST = new RedisScript(`
for i = 1, #ARGV, 2 do
  local known = tonumber(redis.call("HGET", KEYS[1], ARGV[i]) or "0")
  if tonumber(ARGV[i + 1]) > known then redis.call("HSET", KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return 1`);

/**
 * Keys and tenants that gateways share in Redis. They have no time to live, so that a Redis that makes room by evicting
 * what has one keeps them.
 */
export function redisKeyStore(link: RedisLink, log: Logger): KeyStore {
  const keys = link.key("{keys}", "records");
  const tenants = link.key("{keys}", "tenants");
  const used = link.key("{keys}", "used");
  const told = async <T>(answer: T): Promise<T> => {
    // Who misses it finds out at its next poll.
    await link.run((client) => client.publish(link.key(CHANGED), "")).catch(() => {});
    return answer;
  };
  return {
    load: async () => {
      const [records, settings] = await Promise.all([
        link.run((client) => client.hvals(keys)),
        link.run((client) => client.hvals(tenants)),
      ]);
      return {
        keys: [...readStoredKeys(records, log)].sort((a, b) => ((a.created_at ?? "") < (b.created_at ?? "") ? -1 : 1)),
        tenants: [...readStoredTenants(settings, log)].sort((a, b) => (a.id < b.id ? -1 : 1)),
      };
    },
    addKey: async (key) => told((await link.run((client) => client.hsetnx(keys, key.id, storedText(key)))) === 1),
    replaceKey: async (from, to) => {
      const args = [from.id, storedText(from), storedText(to)];
      return told((await link.run((client) => REPLACE.run(client, [keys], args))) === 1);
    },
    deleteKey: async (id) => told((await link.run((client) => client.hdel(keys, id))) === 1),
    putTenant: async (tenant) => {
      await link.run((client) => client.hset(tenants, tenant.id, storedText(tenant)));
      await told(undefined);
    },
    noteUsed: async (moments) => {
      const args = [...moments].flatMap(([id, atMs]) => [id, Math.floor(atMs)]);
      await link.run((client) => LATEST.run(client, [used], args));
    },
    lastUsed: async () => {
      const all = await link.run((client) => client.hgetall(used));
      return new Map(Object.entries(all).map(([id, atMs]) => [id, Number(atMs)]));
    },
    onChange: (listener) => link.subscribe(CHANGED, () => listener()),
  };
}
