import { createHash } from "node:crypto";
import { invariant } from "@atelier/core";
import type { RedisClient, RedisLink } from "./redis-link.ts";
import type { Life, SharedStore } from "./shared-store.ts";

/** What gateways share in Redis. Keys and channels get the link's prefix. */
export class RedisStore implements SharedStore {
  readonly #link: RedisLink;

  constructor(link: RedisLink) {
    this.#link = link;
  }

  async get(key: string): Promise<Buffer | undefined> {
    const value = await this.#link.run((client) => client.getBuffer(this.#link.key(key)));
    return value ?? undefined;
  }

  async set(key: string, value: string | Uint8Array, life: Life): Promise<void> {
    await this.#link.run((client) => client.set(this.#link.key(key), bytes(value), "PX", wholeMs(life)));
  }

  async setIfAbsent(key: string, value: string | Uint8Array, life: Life): Promise<boolean> {
    const answer = await this.#link.run((client) =>
      client.set(this.#link.key(key), bytes(value), "PX", wholeMs(life), "NX"),
    );
    return answer === "OK";
  }

  async replaceIf(
    key: string,
    expected: string | Uint8Array,
    value: string | Uint8Array,
    life: Life | "same",
  ): Promise<boolean> {
    const args = [bytes(expected), bytes(value), life === "same" ? life : wholeMs(life)];
    return (await this.#link.run((client) => REPLACE_IF.run(client, [this.#link.key(key)], args))) === 1;
  }

  async deleteIf(key: string, expected: string | Uint8Array): Promise<boolean> {
    return (await this.#link.run((client) => DELETE_IF.run(client, [this.#link.key(key)], [bytes(expected)]))) === 1;
  }

  async delete(key: string): Promise<void> {
    await this.#link.run((client) => client.del(this.#link.key(key)));
  }

  async publish(channel: string, message: string): Promise<void> {
    await this.#link.run((client) => client.publish(this.#link.key(channel), message));
  }

  subscribe(channel: string, listener: (message: string) => void): () => void {
    return this.#link.subscribe(channel, listener);
  }
}

/** A script that Redis runs as one, sent whole only where Redis does not have it yet. Its keys share one hash slot. */
export class RedisScript {
  readonly #lua: string;
  readonly #sha1: string;

  constructor(lua: string) {
    this.#lua = lua;
    this.#sha1 = createHash("sha1").update(lua).digest("hex");
  }

  /** Sent whole, so that it runs before whatever is sent on the same connection after it. */
  runInOrder(
    client: RedisClient,
    keys: readonly string[],
    args: readonly (string | number | Buffer)[],
  ): Promise<unknown> {
    return client.eval(this.#lua, keys.length, ...keys, ...args);
  }

  async run(
    client: RedisClient,
    keys: readonly string[],
    args: readonly (string | number | Buffer)[],
  ): Promise<unknown> {
    try {
      return await client.evalsha(this.#sha1, keys.length, ...keys, ...args);
    } catch (error) {
      if (!(error instanceof Error && error.message.startsWith("NOSCRIPT"))) throw error;
      return await client.eval(this.#lua, keys.length, ...keys, ...args);
    }
  }
}

const REPLACE_IF = new RedisScript(`
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == "same" then
  redis.call("SET", KEYS[1], ARGV[2], "KEEPTTL")
else
  redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[3])
end
return 1`);

const DELETE_IF = new RedisScript(`
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("DEL", KEYS[1])`);

function wholeMs({ ttlMs }: Life): number {
  invariant(ttlMs > 0, "a value lives for some time");
  return Math.ceil(ttlMs);
}

/** Without a copy. */
function bytes(value: string | Uint8Array): Buffer {
  if (typeof value === "string") return Buffer.from(value);
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}
