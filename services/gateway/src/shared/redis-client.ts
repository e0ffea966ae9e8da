import { readFileSync } from "node:fs";
import type { ConnectionOptions } from "node:tls";
import { ConfigError, type Random } from "@atelier/core";
import { Cluster, type CommonRedisOptions, Redis } from "ioredis";
import type { RedisAddress } from "./redis-address.ts";

/** Files in PEM. Without `ca` the system's own authorities are trusted. */
export interface RedisTls {
  readonly ca: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
}

const CONNECT_TIMEOUT_MS = 2_000;
/** A connection over which nothing comes back for so long is made anew: its other end may be gone without a word. */
const SILENCE_MAX_MS = 3_000;
/** Tells the kernel to find out about an idle one. */
const KEEP_ALIVE_MS = 5_000;
const RECONNECT_FIRST_MS = 50;
const RECONNECT_LAST_MS = 1_000;

/**
 * A client that is not connected yet and that queues nothing: a command fails where it cannot be sent now, and none is
 * sent again after a reconnect, when nobody waits for it any more.
 *
 * @throws ConfigError naming a certificate file that cannot be read.
 */
export function connectRedis(
  { address, tls }: { address: RedisAddress; tls: RedisTls },
  random: Random,
): Redis | Cluster {
  const retryStrategy = (attempt: number) => reconnectMs(attempt, random);
  const secured = address.tls ? tlsOptions(tls) : undefined;
  const common = {
    username: address.username,
    password: address.password,
    connectTimeout: CONNECT_TIMEOUT_MS,
    socketTimeout: SILENCE_MAX_MS,
    keepAlive: KEEP_ALIVE_MS,
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    // RedisLink subscribes by itself, which also covers subscriptions asked for while there was no connection.
    autoResubscribe: false,
    // A master that a failover made a replica answers so: the sentinels know the new one.
    reconnectOnError: (error: Error) => error.message.startsWith("READONLY"),
    disableClientInfo: true,
  } satisfies CommonRedisOptions;
  const [first] = address.nodes;
  switch (address.kind) {
    case "single":
      return new Redis({
        ...common,
        ...first!,
        db: address.database,
        tls: secured,
        retryStrategy,
        lazyConnect: true,
        enableOfflineQueue: false,
      });
    case "sentinel":
      return new Redis({
        ...common,
        sentinels: [...address.nodes],
        name: address.masterName,
        sentinelRetryStrategy: retryStrategy,
        sentinelUsername: address.username,
        sentinelPassword: address.password,
        sentinelCommandTimeout: CONNECT_TIMEOUT_MS,
        // Hears of a failover from the sentinels instead of from the old master's silence.
        failoverDetector: true,
        tls: secured,
        sentinelTLS: secured,
        enableTLSForSentinelMode: address.tls,
        retryStrategy,
        lazyConnect: true,
        enableOfflineQueue: false,
      });
    case "cluster":
      return new Cluster([...address.nodes], {
        redisOptions: { ...common, tls: secured },
        // Certificates are made out to names: resolving them first would lose those.
        dnsLookup: (host, callback) => callback(null, host),
        clusterRetryStrategy: retryStrategy,
        slotsRefreshTimeout: CONNECT_TIMEOUT_MS,
        lazyConnect: true,
        enableOfflineQueue: false,
      });
  }
}

/** Doubling, with the upper half drawn, as fleet/backoff.ts does for workers. */
function reconnectMs(attempt: number, random: Random): number {
  const fullMs = Math.min(RECONNECT_LAST_MS, RECONNECT_FIRST_MS * 2 ** Math.min(attempt - 1, 10));
  return fullMs / 2 + random.next() * (fullMs / 2);
}

/**
 * Read again for each new connection, so that renewed files are used from the next one on. Files that cannot be read by
 * then leave it at what they held.
 */
function tlsOptions({ ca, cert, key }: RedisTls): ConnectionOptions {
  const options: ConnectionOptions = {};
  const add = (name: "ca" | "cert" | "key", variable: string, file: string | undefined) => {
    if (file === undefined) return;
    let content = read(variable, file);
    const get = () => {
      try {
        content = read(variable, file);
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error;
      }
      return content;
    };
    Object.defineProperty(options, name, { enumerable: true, get });
  };
  add("ca", "ATELIER_REDIS_CA", ca);
  add("cert", "ATELIER_REDIS_CERT", cert);
  add("key", "ATELIER_REDIS_KEY", key);
  return options;
}

function read(variable: string, file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new ConfigError(`${variable}=${file}: cannot be read (${(error as NodeJS.ErrnoException).code})`, {
      cause: error,
    });
  }
}
