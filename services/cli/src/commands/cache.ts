import { GatewayClient, type Server } from "../client/gateway-client.ts";

/** What to drop; the server refuses what names nothing. */
export interface Named {
  readonly all?: true | undefined;
  readonly tenant?: string | undefined;
  readonly model?: string | undefined;
  readonly adapter?: string | undefined;
  readonly prompt_prefix?: string | undefined;
}

interface Purged {
  readonly in_memory: number;
  readonly in_redis: number | null;
}

interface CacheSize {
  readonly memory: { readonly results: number; readonly bytes: number; readonly bytes_max: number };
  readonly redis: { readonly results: number; readonly bytes: number } | null;
}

/** @throws CliError with the server's words. */
export async function purgeCache({
  server,
  named,
  json,
}: {
  server: Server;
  named: Named;
  json: boolean;
}): Promise<void> {
  const purged = (await client(server).call("POST", "/v1/admin/cache/purge", named)) as Purged;
  if (json) return console.log(JSON.stringify(purged));
  const inRedis = purged.in_redis === null ? "" : `, ${purged.in_redis} in Redis`;
  console.log(`Purged · 已清除: ${purged.in_memory} at hand${inRedis}. Other gateways drop theirs within two seconds.`);
}

export async function cacheStats({ server, json }: { server: Server; json: boolean }): Promise<void> {
  const size = (await client(server).call("GET", "/v1/admin/cache")) as CacheSize;
  if (json) return console.log(JSON.stringify(size, undefined, 2));
  const { memory, redis } = size;
  console.log(`at hand · 内存: ${memory.results} results, ${mib(memory.bytes)} of ${mib(memory.bytes_max)} MiB`);
  if (redis !== null) console.log(`in Redis: ${redis.results} results, ${mib(redis.bytes)} MiB`);
}

const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);

const client = (server: Server) => new GatewayClient(server, new AbortController().signal);
