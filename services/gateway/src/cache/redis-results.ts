import type { Clock } from "@atelier/core";
import type { RedisLink } from "../shared/redis-link.ts";
import { RedisScript } from "../shared/redis-store.ts";
import type { Subject } from "./kept-result.ts";

/** Where gateways keep results together. Every method rejects with StoreUnavailable where it cannot be reached. */
export interface SharedResults {
  /** As it was set, or damaged. */
  get(key: string): Promise<Buffer | undefined>;
  set(key: string, value: Buffer, about: { readonly subject: Subject; readonly ttlMs: number }): Promise<void>;
  delete(key: string): Promise<void>;
  /** Drops what `purged` holds of, judged by the first PREFIX_CHARS of the prompt; how many that were. */
  sweep(purged: (subject: Subject) => boolean): Promise<number>;
  size(): Promise<{ readonly count: number; readonly bytes: number }>;
}

/** Of a prompt, in the index. */
export const PREFIX_CHARS = 256;
const SWEEP_PAGE = 500;

/**
 * Results in Redis, each under a key of its own with its own time to live, and an index beside them: who was used when,
 * until when each lives, what it weighs and what it is about. The index keeps us to our own budget, so that this cache
 * can share a Redis with leases and limits, which Redis' own eviction would throw away with the pictures; and a purge
 * finds by it what to drop.
 *
 * In a cluster the index lies in one place and the values in many, so the two are not written as one: a value that the
 * index does not know goes when its time is over, an entry without a value is found to be one when it is oldest.
 */
export class RedisResults implements SharedResults {
  readonly #link: RedisLink;
  readonly #clock: Clock;
  readonly #bytesMax: number;
  readonly #index: readonly string[];

  constructor(link: RedisLink, { clock, bytesMax }: { clock: Clock; bytesMax: number }) {
    this.#link = link;
    this.#clock = clock;
    this.#bytesMax = bytesMax;
    const part = (name: string) => link.key("{cache:index}", name);
    this.#index = [part("used"), part("until"), part("bytes"), part("about"), part("total")];
  }

  async get(key: string): Promise<Buffer | undefined> {
    const value = await this.#link.run((client) => client.getBuffer(this.#valueKey(key)));
    if (value === null) return undefined;
    // Nobody waits for that; where it is lost, the value looks older than it is.
    this.#link.run((client) => client.zadd(this.#index[0]!, "XX", this.#clock.nowMs(), key)).catch(() => {});
    return value;
  }

  async set(
    key: string,
    value: Buffer,
    { subject, ttlMs }: { readonly subject: Subject; readonly ttlMs: number },
  ): Promise<void> {
    if (value.length > this.#bytesMax) return;
    const nowMs = this.#clock.nowMs();
    await this.#link.run((client) => client.set(this.#valueKey(key), value, "PX", Math.ceil(ttlMs)));
    const about = JSON.stringify({ ...subject, prompt: subject.prompt.slice(0, PREFIX_CHARS) });
    const args = [key, nowMs, nowMs + ttlMs, value.length, about, this.#bytesMax];
    const evicted = await this.#link.run((client) => ADD.run(client, this.#index, args));
    await this.#unlink(evicted as string[]);
  }

  async delete(key: string): Promise<void> {
    await this.#unlink([key]);
    await this.#link.run((client) => REMOVE.run(client, this.#index, [key]));
  }

  async sweep(purged: (subject: Subject) => boolean): Promise<number> {
    let cursor = "0";
    let swept = 0;
    do {
      const at = cursor;
      const [next, page] = await this.#link.run((client) => client.hscan(this.#index[3]!, at, "COUNT", SWEEP_PAGE));
      const keys: string[] = [];
      for (let i = 0; i < page.length; i += 2) if (purged(JSON.parse(page[i + 1]!) as Subject)) keys.push(page[i]!);
      if (keys.length > 0) {
        await this.#unlink(keys);
        swept += Number(await this.#link.run((client) => REMOVE.run(client, this.#index, keys)));
      }
      cursor = next;
    } while (cursor !== "0");
    return swept;
  }

  async size(): Promise<{ readonly count: number; readonly bytes: number }> {
    const [count, bytes] = await this.#link.run((client) =>
      Promise.all([client.zcard(this.#index[0]!), client.get(this.#index[4]!)]),
    );
    return { count, bytes: Number(bytes ?? 0) };
  }

  /** One by one, since in a cluster they lie in different places. */
  async #unlink(keys: readonly string[]): Promise<void> {
    if (keys.length === 0) return;
    await this.#link.run((client) => Promise.all(keys.map((key) => client.unlink(this.#valueKey(key)))));
  }

  #valueKey(key: string): string {
    return this.#link.key("cache", "value", key);
  }
}

/** KEYS: used, until, bytes, about, total. */
const DROP = `
local function drop(key)
  local bytes = redis.call("HGET", KEYS[3], key)
  if not bytes then return 0 end
  redis.call("DECRBY", KEYS[5], bytes)
  redis.call("ZREM", KEYS[1], key)
  redis.call("ZREM", KEYS[2], key)
  redis.call("HDEL", KEYS[3], key)
  redis.call("HDEL", KEYS[4], key)
  return 1
end`;

/** ARGV: key, now, until, bytes, about, budget. Gives the keys that have to go for it: the longest unused. */
const ADD = new RedisScript(`${DROP}
drop(ARGV[1])
for _, key in ipairs(redis.call("ZRANGEBYSCORE", KEYS[2], "-inf", ARGV[2], "LIMIT", 0, 100)) do drop(key) end
redis.call("ZADD", KEYS[1], ARGV[2], ARGV[1])
redis.call("ZADD", KEYS[2], ARGV[3], ARGV[1])
redis.call("HSET", KEYS[3], ARGV[1], ARGV[4])
redis.call("HSET", KEYS[4], ARGV[1], ARGV[5])
local total = redis.call("INCRBY", KEYS[5], ARGV[4])
local evicted = {}
while total > tonumber(ARGV[6]) do
  local oldest = redis.call("ZRANGE", KEYS[1], 0, 0)[1]
  if not oldest or oldest == ARGV[1] then break end
  drop(oldest)
  evicted[#evicted + 1] = oldest
  total = tonumber(redis.call("GET", KEYS[5]))
end
return evicted`);

/** ARGV: keys. Gives how many of them there were. */
const REMOVE = new RedisScript(`${DROP}
local removed = 0
for _, key in ipairs(ARGV) do removed = removed + drop(key) end
return removed`);
