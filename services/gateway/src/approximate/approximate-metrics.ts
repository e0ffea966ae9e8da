import { Counter, Gauge, type Registry } from "@atelier/telemetry";
import type { LatentIndex } from "./latent-index.ts";

export const LOOKUP_OUTCOMES = ["used", "none", "unlike", "no_embedding", "lost", "refused"] as const;
/** What came of looking for a latent to begin from. */
export type LookupOutcome = (typeof LOOKUP_OUTCOMES)[number];

export interface ApproximateMetrics {
  readonly lookups: Counter<"outcome">;
  readonly stepsReused: Counter;
}

export function createApproximateMetrics(registry: Registry, index: LatentIndex): ApproximateMetrics {
  const registers = [registry];
  new Gauge({
    name: "atelier_gateway_approximate_entries",
    help: "Pictures that this gateway knows others may begin from.",
    registers,
    collect() {
      this.set(index.count);
    },
  });
  new Gauge({
    name: "atelier_gateway_approximate_bytes",
    help: "What the latents of those weigh.",
    registers,
    collect() {
      this.set(index.bytes);
    },
  });
  return {
    lookups: new Counter<"outcome">({
      name: "atelier_gateway_approximate_lookups_total",
      help: "Pictures that were allowed to begin from a similar prompt's: used; or none is known of its like, all are too unlike, the prompt could not be embedded in time, the latent was lost or damaged, or a worker refused it.",
      labelNames: ["outcome"],
      registers,
    }),
    stepsReused: new Counter({
      name: "atelier_gateway_approximate_steps_reused_total",
      help: "Denoising steps that were left out, since a picture began from a similar prompt's.",
      registers,
    }),
  };
}
