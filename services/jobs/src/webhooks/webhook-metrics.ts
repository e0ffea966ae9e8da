import { Counter, Gauge, Histogram, type Registry } from "@atelier/telemetry";

export interface WebhookMetrics {
  readonly calls: Counter<"event" | "outcome">;
  readonly callSeconds: Histogram;
}

/** Seconds up to the limit of a call. */
const CALL_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export function createWebhookMetrics(registry: Registry, pending: () => number): WebhookMetrics {
  const registers = [registry];
  new Gauge({
    name: "atelier_jobs_webhook_deliveries_pending",
    help: "Webhook calls that wait for their first or their next attempt.",
    registers,
    collect() {
      this.set(pending());
    },
  });
  return {
    calls: new Counter({
      name: "atelier_jobs_webhook_calls_total",
      help: "Attempts at webhook calls: delivered, to be retried, failed for good, stopped by the receiver, or dropped for a newer one (progress only).",
      labelNames: ["event", "outcome"],
      registers,
    }),
    callSeconds: new Histogram({
      name: "atelier_jobs_webhook_call_duration_seconds",
      help: "How long receivers took to answer, or not to.",
      buckets: CALL_BUCKETS_S,
      registers,
    }),
  };
}
