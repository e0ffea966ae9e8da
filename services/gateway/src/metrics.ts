import { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, type Registry, TracedHistogram } from "@atelier/telemetry";
import { registerBacklog } from "./backlog/backlog-metrics.ts";
import type { Caller, PriorityClass } from "./caller.ts";
import type { ByteBudget } from "./dispatch/byte-budget.ts";
import { createDispatchMetrics, type DispatchMetrics } from "./dispatch/dispatch-metrics.ts";
import type { Fleet } from "./fleet/fleet.ts";
import type { CacheOutcome } from "./generations/ports.ts";
import type { InFlight } from "./in-flight.ts";
import type { PlacementObserver } from "./placement/fleet-placer.ts";
import { createPlacementMetrics } from "./placement/placement-metrics.ts";

/** What /metrics shows. Routes are patterns and models are those of the fleet, so that no caller can add a series. */
export interface GatewayMetrics {
  readonly registry: Registry;
  requestEnded(request: RequestEnded): void;
  readonly generations: GenerationMetrics;
  readonly idempotency: Counter<"outcome">;
  readonly dispatch: DispatchMetrics;
  readonly placement: PlacementObserver;
  readonly background: Counter<"status">;
}

/** A request that was answered, by HTTP or gRPC. */
export interface RequestEnded {
  /** A pattern. */
  readonly route: string;
  readonly method: string;
  readonly status: number;
  readonly durationMs: number;
  /** Null or undefined: nobody was asked for, or what was shown was no key. */
  readonly caller: Pick<Caller, "priority"> | null | undefined;
  /** Null: it got no pictures. */
  readonly servedAs: CacheOutcome | null;
}

/** What is measured of pictures on their way. */
export interface GenerationMetrics {
  readonly images: Counter<"model" | "format" | "simulated">;
  /** `traceId`: of the request, where it is recorded. */
  firstStep(priority: PriorityClass, sinceArrivalMs: number, traceId: string | undefined): void;
  queueWait(priority: PriorityClass, ms: number, traceId: string | undefined): void;
}

export interface Measured {
  readonly fleet: Fleet;
  readonly inFlight: InFlight;
  readonly checkpoints: ByteBudget;
  /** Of the source that was built; undefined: not known. */
  readonly revision?: string | undefined;
}

export function createGatewayMetrics({ fleet, inFlight, checkpoints, revision }: Measured): GatewayMetrics {
  const registry = createRegistry("gateway", { revision });
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
  const requests = new Counter({
    name: "atelier_gateway_requests_total",
    help: "Requests answered over HTTP and gRPC (with the status that HTTP would have), by the class of the caller's key and by where their pictures came from; status 499 is a caller that went away.",
    labelNames: ["route", "method", "status", "tenant_class", "cache"],
    registers,
  });
  const requestSeconds = new TracedHistogram({
    name: "atelier_gateway_request_duration_seconds",
    help: "From a request's arrival to the last byte of its answer.",
    labelNames: ["route", "tenant_class", "cache"],
    buckets: DURATION_BUCKETS_S,
    registers,
  });
  return {
    registry,
    requestEnded: ({ route, method: sent, status, durationMs, caller, servedAs }) => {
      const method = METHODS.has(sent) ? sent : "other";
      const cache = servedAs ?? "none";
      const tenant_class = caller?.priority ?? "none";
      requests.inc({ route, method, status, tenant_class, cache });
      requestSeconds.observe({ route, tenant_class, cache }, durationMs / 1000);
    },
    generations: createGenerationMetrics(registry),
    dispatch: createDispatchMetrics(registry, checkpoints),
    placement: createPlacementMetrics(registry, fleet),
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

/** Of what is answered; whatever else is sent as one is "other". */
const METHODS: ReadonlySet<string> = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "gRPC"]);

function createGenerationMetrics(registry: Registry): GenerationMetrics {
  const registers = [registry];
  const firstStep = new TracedHistogram({
    name: "atelier_gateway_time_to_first_step_seconds",
    help: "From a request's arrival until the first denoising step of its pictures was made, by its class; requests that no step was made for, as those from the cache, are left out.",
    labelNames: ["class"],
    buckets: DURATION_BUCKETS_S,
    registers,
  });
  const queueWait = new TracedHistogram({
    name: "atelier_gateway_queue_wait_seconds",
    help: "From a worker's taking of a request until the first denoising step of it was made, by its class: text encoding and the step itself are in it.",
    labelNames: ["class"],
    buckets: DURATION_BUCKETS_S,
    registers,
  });
  return {
    images: new Counter({
      name: "atelier_gateway_images_total",
      help: "Pictures delivered to callers.",
      labelNames: ["model", "format", "simulated"],
      registers,
    }),
    firstStep: (priority, ms, traceId) => firstStep.observe({ class: priority }, ms / 1000, traceId),
    queueWait: (priority, ms, traceId) => queueWait.observe({ class: priority }, ms / 1000, traceId),
  };
}
