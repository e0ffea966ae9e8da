import { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, Histogram, type Registry } from "@atelier/telemetry";
import { registerBacklog } from "./backlog/backlog-metrics.ts";
import type { ByteBudget } from "./dispatch/byte-budget.ts";
import { createDispatchMetrics, type DispatchMetrics } from "./dispatch/dispatch-metrics.ts";
import type { Fleet } from "./fleet/fleet.ts";
import type { InFlight } from "./in-flight.ts";
import type { PlacementObserver } from "./placement/fleet-placer.ts";
import { createPlacementMetrics } from "./placement/placement-metrics.ts";

/** What /metrics shows. Routes are patterns and models are those of the fleet, so that no caller can add a series. */
export interface GatewayMetrics {
  readonly registry: Registry;
  readonly requests: Counter<"route" | "method" | "status">;
  readonly requestSeconds: Histogram<"route">;
  readonly images: Counter<"model" | "format" | "simulated">;
  readonly idempotency: Counter<"outcome">;
  readonly dispatch: DispatchMetrics;
  readonly placement: PlacementObserver;
  readonly background: Counter<"status">;
}

export interface Measured {
  readonly fleet: Fleet;
  readonly inFlight: InFlight;
  readonly checkpoints: ByteBudget;
}

export function createGatewayMetrics({ fleet, inFlight, checkpoints }: Measured): GatewayMetrics {
  const registry = createRegistry("gateway");
  const registers = [registry];
  new Gauge({
    name: "atelier_gateway_generations_in_flight",
    help: "Generations that are being made for callers of this gateway.",
    registers,
    collect() {
      this.set(inFlight.count);
    },
  });
  registerBacklog(registry, fleet);
  new Gauge({
    name: "atelier_gateway_workers",
    help: "Workers that this gateway knows, by whether they take requests.",
    labelNames: ["ready"],
    registers,
    collect() {
      const views = fleet.views();
      const ready = views.filter((worker) => worker.ready).length;
      this.set({ ready: "true" }, ready);
      this.set({ ready: "false" }, views.length - ready);
    },
  });
  return {
    registry,
    dispatch: createDispatchMetrics(registry, checkpoints),
    placement: createPlacementMetrics(registry, fleet),
    requests: new Counter({
      name: "atelier_gateway_requests_total",
      help: "HTTP requests answered; status 499 is a caller that went away.",
      labelNames: ["route", "method", "status"],
      registers,
    }),
    requestSeconds: new Histogram({
      name: "atelier_gateway_request_duration_seconds",
      help: "From a request's arrival to the last byte of its answer.",
      labelNames: ["route"],
      buckets: DURATION_BUCKETS_S,
      registers,
    }),
    images: new Counter({
      name: "atelier_gateway_images_total",
      help: "Pictures delivered to callers.",
      labelNames: ["model", "format", "simulated"],
      registers,
    }),
    background: new Counter({
      name: "atelier_gateway_background_generations_total",
      help: "Generations in the background that ended here.",
      labelNames: ["status"],
      registers,
    }),
    idempotency: new Counter({
      name: "atelier_gateway_idempotency_total",
      help: "Requests with an idempotency key: done first, replayed, refused as another request's or as still busy; and, besides, those that the shared store was not there for.",
      labelNames: ["outcome"],
      registers,
    }),
  };
}
