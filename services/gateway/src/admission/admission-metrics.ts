import { Counter, Gauge, Histogram, type Registry } from "@atelier/telemetry";
import type { BrownOut } from "./brown-out.ts";

export interface AdmissionMetrics {
  readonly refusals: Pick<Counter<"reason">, "inc">;
  readonly predictedWaitSeconds: Pick<Histogram, "observe">;
}

export function createAdmissionMetrics(registry: Registry, brownOut: BrownOut | undefined): AdmissionMetrics {
  const registers = [registry];
  if (brownOut !== undefined) {
    new Gauge({
      name: "atelier_gateway_brown_out_level",
      help: "How much less is asked of requests at present: 0 nothing, 1 fewer steps, 2 still fewer and a faster sampler.",
      registers,
      collect() {
        this.set(brownOut.level);
      },
    });
  }
  return {
    refusals: new Counter({
      name: "atelier_gateway_admission_refusals_total",
      help: "Requests refused at the door by prediction: too much work before them, or no time left to finish them in.",
      labelNames: ["reason"],
      registers,
    }),
    predictedWaitSeconds: new Histogram({
      name: "atelier_gateway_predicted_wait_seconds",
      help: "What a request would wait for other work, as predicted when it came.",
      buckets: [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120],
      registers,
    }),
  };
}
