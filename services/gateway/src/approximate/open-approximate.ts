import type { Clock } from "@atelier/core";
import type { Registry } from "@atelier/telemetry";
import type { ExactCache } from "../cache/exact-cache.ts";
import { ModelDigests } from "../cache/model-digests.ts";
import type { ApproximateConfig } from "../config.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { MemoryStore } from "../shared/memory-store.ts";
import type { SharedStore } from "../shared/shared-store.ts";
import { ApproximateCache } from "./approximate-cache.ts";
import { createApproximateMetrics } from "./approximate-metrics.ts";
import { KeptLatents } from "./kept-latents.ts";
import { LatentIndex } from "./latent-index.ts";
import { PromptEmbeddings } from "./prompt-embeddings.ts";
import { reuseTableOf } from "./reuse-table.ts";

export interface ApproximateWorld {
  readonly clock: Clock;
  readonly config: ApproximateConfig;
  readonly fleet: Pick<Fleet, "views" | "onChange" | "clientAt">;
  /** What gateways share; undefined: this gateway is alone. */
  readonly shared: SharedStore | undefined;
  /** Whose scope and purges hold here as well. */
  readonly exact: Pick<ExactCache, "scope" | "purges">;
  readonly registry: Registry;
}

/** The approximate cache as the configuration has it: latents in Redis, or in this process where there is none. */
export function openApproximate({ clock, config, fleet, shared, exact, registry }: ApproximateWorld): ApproximateCache {
  const { bytesMax } = config;
  const store = shared ?? new MemoryStore(clock, { bytesMax });
  const latents = new KeptLatents(store);
  const index = new LatentIndex({ clock, bytesMax, onEvicted: (entry) => void latents.delete(entry) });
  const digests = new ModelDigests(fleet);
  return new ApproximateCache({
    ...config,
    clock,
    scope: exact.scope,
    purges: exact.purges,
    tableOf: reuseTableOf,
    store,
    latents,
    index,
    embeddings: new PromptEmbeddings({ clock, fleet }),
    modelDigest: (model) => digests.of(model),
    metrics: createApproximateMetrics(registry, index),
  });
}
