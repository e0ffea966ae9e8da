import { Counter, Gauge, type Registry } from "@atelier/telemetry";

export interface RedisMetrics {
  readonly up: Gauge;
  readonly failures: Counter<"kind">;
}

/** Only where Redis is configured: a gauge of 0 where there is none would look like a loss. */
export function createRedisMetrics(registry: Registry): RedisMetrics {
  const registers = [registry];
  return {
    up: new Gauge({
      name: "atelier_gateway_redis_up",
      help: "1 while Redis answers; 0 while this gateway goes on without it.",
      registers,
    }),
    failures: new Counter({
      name: "atelier_gateway_redis_failures_total",
      help: "Operations that got no use of Redis: timeout, connection, full (out of memory), refused, or open (not tried, since it did not answer of late).",
      labelNames: ["kind"],
      registers,
    }),
  };
}
