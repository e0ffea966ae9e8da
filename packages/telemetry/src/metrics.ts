import { collectDefaultMetrics, Gauge, Histogram, type HistogramConfiguration, Registry } from "prom-client";
import { VERSION } from "./build.ts";
import { currentTraceId } from "./scope.ts";

export { Counter, Gauge, Histogram, type Registry } from "prom-client";

export interface Build {
  /** Of the source that it was built from; undefined: nobody said. */
  readonly revision?: string | undefined;
}

/**
 * A registry with what every process tells of itself: its build, CPU, memory, event loop. A `service` label is on
 * everything.
 */
export function createRegistry(service: string, { revision }: Build = {}): Registry {
  // What it is shown as is Exposition's to say; prom-client keeps exemplars only for a registry of this kind.
  const registry = new Registry();
  registry.setContentType(Registry.OPENMETRICS_CONTENT_TYPE as never);
  registry.setDefaultLabels({ service });
  collectDefaultMetrics({ register: registry });
  for (const name of LEFT_OUT) registry.removeSingleMetric(name);
  new Gauge({
    name: "atelier_build_info",
    help: "Always 1; its labels say what runs: version of Atelier, revision of its source (unknown where the build did not say), version of Node.",
    labelNames: ["version", "revision", "node"],
    registers: [registry],
  }).set({ version: VERSION, revision: revision ?? "unknown", node: process.version }, 1);
  return registry;
}

/**
 * Named like counters although they are none, and the same as the sums of others; asking Node for its handles is slow
 * where there are thousands of connections.
 */
const LEFT_OUT = [
  "nodejs_active_handles",
  "nodejs_active_handles_total",
  "nodejs_active_requests",
  "nodejs_active_requests_total",
  "nodejs_active_resources_total",
];

/** A histogram whose buckets each name a trace of late that fell into them, where it is recorded. */
export class TracedHistogram<Label extends string = never> {
  readonly #histogram: Histogram<string>;

  constructor(config: Omit<HistogramConfiguration<Label>, "collect">) {
    this.#histogram = new Histogram<string>({ ...config, enableExemplars: true });
  }

  /** `traceId`: of what was measured, where that is not what runs now. */
  observe(
    labels: Readonly<Record<Label, string>>,
    value: number,
    traceId: string | undefined = currentTraceId(),
  ): void {
    this.#histogram.observe({
      labels,
      value,
      ...(traceId !== undefined && { exemplarLabels: { trace_id: traceId } }),
    });
  }
}

/** Seconds, from a cache hit (1 ms) to a long generation (2 min), about 1.8x apart. */
export const DURATION_BUCKETS_S = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.6, 1, 1.8, 3, 5, 9, 16, 30, 60, 120,
];
