import { systemClock, systemRandom } from "@atelier/core";
import { createRedisMetrics, parseRedisAddress, RedisLink } from "@atelier/gateway/shared";
import { createRegistry, type Logger, type Registry } from "@atelier/telemetry";

export interface OpenLink {
  readonly link: RedisLink;
  /** The messages of what was logged, with their level before them. */
  readonly logged: string[];
  readonly registry: Registry;
}

/** A gateway's connection to the Redis at `url`, alone. */
export async function openRedisLink(
  url: string,
  { timeoutMs = 250, tls = {} }: { timeoutMs?: number; tls?: { ca?: string; cert?: string; key?: string } } = {},
): Promise<OpenLink> {
  const logged: string[] = [];
  const registry = createRegistry("gateway");
  const note =
    (level: string) =>
    ({ why }: { why?: string }, message: string) => {
      logged.push(`${level}: ${message}${why === undefined ? "" : ` (${why})`}`);
    };
  const log = { info: note("info"), warn: note("warn"), error: note("error"), debug: note("debug") };
  const link = await RedisLink.open(
    {
      address: parseRedisAddress(url),
      tls: { ca: tls.ca, cert: tls.cert, key: tls.key },
      prefix: "test:",
      timeoutMs,
    },
    {
      clock: systemClock,
      random: systemRandom,
      log: log as unknown as Logger,
      metrics: createRedisMetrics(registry),
    },
  );
  return { link, logged, registry };
}
