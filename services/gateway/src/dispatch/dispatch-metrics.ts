import { Counter, Gauge, type Registry } from "@atelier/telemetry";
import type { ByteBudget } from "./byte-budget.ts";

export interface DispatchMetrics {
  readonly attempts: Counter<"outcome">;
  readonly retries: Counter<"reason">;
  readonly retriesRefused: Counter;
  readonly resumedSteps: Counter;
  readonly hedges: Counter<"outcome">;
}

/** Every label's values are a closed list: error codes, and those named here. */
export function createDispatchMetrics(registry: Registry, checkpoints: ByteBudget): DispatchMetrics {
  const registers = [registry];
  new Gauge({
    name: "atelier_gateway_checkpoint_bytes",
    help: "What the kept states of half-finished pictures weigh.",
    registers,
    collect() {
      this.set(checkpoints.held);
    },
  });
  return {
    attempts: new Counter({
      name: "atelier_gateway_attempts_total",
      help: "Calls to workers, by how they ended: ok, an error's code, STALLED, SUPERSEDED by another attempt.",
      labelNames: ["outcome"],
      registers,
    }),
    retries: new Counter({
      name: "atelier_gateway_retries_total",
      help: "Attempts after a failed one, by the code of the failure.",
      labelNames: ["reason"],
      registers,
    }),
    retriesRefused: new Counter({
      name: "atelier_gateway_retries_refused_total",
      help: "Failures that were passed on since the gateway's budget of retries was used up.",
      registers,
    }),
    resumedSteps: new Counter({
      name: "atelier_gateway_resumed_steps_total",
      help: "Denoising steps that did not have to be made again, since a picture went on from its last checkpoint.",
      registers,
    }),
    hedges: new Counter({
      name: "atelier_gateway_hedges_total",
      help: "Second attempts beside a straggler: won, lost, or none for want of a worker (no_worker) or of the budget of retries (no_budget).",
      labelNames: ["outcome"],
      registers,
    }),
  };
}
