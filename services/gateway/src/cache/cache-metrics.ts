import { Counter, Gauge, type Registry } from "@atelier/telemetry";
import type { MemoryResults } from "./memory-results.ts";

export const KEPT_OUTCOMES = ["kept", "rare", "other_model", "approximate", "purged"] as const;
/** What became of a result: kept, or why not. */
export type KeptOutcome = (typeof KEPT_OUTCOMES)[number];

export interface CacheMetrics {
  readonly requests: Counter<"outcome">;
  readonly results: Counter<"outcome">;
  readonly damaged: Counter;
}

export function createCacheMetrics(registry: Registry, memory: MemoryResults): CacheMetrics {
  const registers = [registry];
  new Gauge({
    name: "atelier_gateway_cache_memory_bytes",
    help: "What the results that this gateway has at hand weigh.",
    registers,
    collect() {
      this.set(memory.bytes);
    },
  });
  new Gauge({
    name: "atelier_gateway_cache_memory_results",
    help: "Results that this gateway has at hand.",
    registers,
    collect() {
      this.set(memory.count);
    },
  });
  return {
    requests: new Counter<"outcome">({
      name: "atelier_gateway_cache_requests_total",
      help: "Requests answered with pictures, by where those came from: see x-atelier-cache.",
      labelNames: ["outcome"],
      registers,
    }),
    results: new Counter<"outcome">({
      name: "atelier_gateway_cache_results_total",
      help: "Results made here: kept; or not, as asked too rarely, of another bundle than the catalog's, not exact, or purged while they were made.",
      labelNames: ["outcome"],
      registers,
    }),
    damaged: new Counter({
      name: "atelier_gateway_cache_damaged_total",
      help: "Values in Redis that were not what was written under their key, and were deleted.",
      registers,
    }),
  };
}
