import { Counter, Gauge, type Registry } from "@atelier/telemetry";
import type { Served } from "../generations/ports.ts";
import { LIMIT_NAMES, type LimitName, type UsageRow } from "./accounts.ts";
import type { TenantDirectory } from "./directory.ts";

export interface TenantMetrics {
  readonly refusals: Counter<"limit">;
  /** A request was served, and is booked as `row`. */
  used(row: Pick<UsageRow, "model" | "deviceMs" | "costMicros">, served: Pick<Served, "outcome">): void;
}

export interface TenantMetricsOptions {
  readonly directory: TenantDirectory;
  /** Requests that are answered and not booked. */
  readonly unbooked: () => number;
  readonly currency: string;
}

export function createTenantMetrics(
  registry: Registry,
  { directory, unbooked, currency }: TenantMetricsOptions,
): TenantMetrics {
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
  const cost = new Counter({
    name: "atelier_gateway_image_cost_total",
    help: "What pictures delivered here cost by their tenants' prices of a device hour, in units of the currency; those from a cache cost nothing, those of bulk jobs are not in it.",
    labelNames: ["model", "currency"],
    registers,
  });
  const deviceSeconds = new Counter({
    name: "atelier_gateway_device_seconds_total",
    help: "Device seconds that pictures delivered here took, by where those came from; those of bulk jobs are not in it.",
    labelNames: ["model", "cache"],
    registers,
  });
  return {
    refusals,
    used: ({ model, deviceMs, costMicros }, { outcome }) => {
      cost.inc({ model, currency }, costMicros / 1e6);
      deviceSeconds.inc({ model, cache: outcome }, deviceMs / 1000);
    },
  };
}
