import { Counter, Gauge, type Registry } from "@atelier/telemetry";
import { LIMIT_NAMES, type LimitName } from "./accounts.ts";
import type { TenantDirectory } from "./directory.ts";

export interface TenantMetrics {
  readonly refusals: Counter<"limit">;
}

export interface TenantMetricsOptions {
  readonly directory: TenantDirectory;
  /** Requests that are answered and not booked. */
  readonly unbooked: () => number;
}

export function createTenantMetrics(registry: Registry, { directory, unbooked }: TenantMetricsOptions): TenantMetrics {
  const registers = [registry];
  new Gauge({
    name: "atelier_gateway_api_keys",
    help: "API keys that this gateway knows.",
    registers,
    collect() {
      this.set(directory.keys().length);
    },
  });
  new Gauge({
    name: "atelier_gateway_usage_unbooked_requests",
    help: "Requests that were answered and are not in the book of use yet; it grows while Redis is away.",
    registers,
    collect() {
      this.set(unbooked());
    },
  });
  const refusals = new Counter({
    name: "atelier_gateway_tenant_refusals_total",
    help: "Requests refused by a limit of their tenant's.",
    labelNames: ["limit"],
    registers,
  });
  for (const limit of LIMIT_NAMES) refusals.inc({ limit } satisfies { limit: LimitName }, 0);
  return { refusals };
}
