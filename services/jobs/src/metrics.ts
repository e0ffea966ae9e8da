import type { EndedRequest } from "@atelier/http";
import type { QueueDepth } from "@atelier/job-queue";
import { PriorityClass } from "@atelier/proto";
import { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, type Registry, TracedHistogram } from "@atelier/telemetry";
import type { EndedItem } from "./engine/job-engine.ts";
import type { KeptJob } from "./engine/kept-job.ts";
import { ITEM_STATES, type ItemShape, JOB_STATUSES } from "./job.ts";

const CLASS_NAMES = new Map(
  Object.entries(PriorityClass).map(([name, value]) => [value as number, name.toLowerCase()]),
);

/** Of each model, what its shapes take of what all take. Sums to 1. */
export function modelShares(shapes: readonly ItemShape[]): ReadonlyMap<string, number> {
  const all = shapes.reduce((sum, shape) => sum + shape.predictedDeviceMs, 0);
  const shares = new Map<string, number>();
  for (const { model, predictedDeviceMs } of shapes) {
    const share = all > 0 ? predictedDeviceMs / all : 1 / shapes.length;
    shares.set(model, (shares.get(model) ?? 0) + share);
  }
  return shares;
}

/** What /metrics shows. No label is a job's or a tenant's, so that no caller can add a series. */
export interface JobsMetrics {
  readonly registry: Registry;
  requestEnded(request: Pick<EndedRequest, "route" | "method" | "status" | "durationMs">): void;
  itemEnded(item: EndedItem): void;
}

/** Of what is answered; whatever else is sent as one is "other". */
const METHODS: ReadonlySet<string> = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);

export interface MeasuredJobs {
  readonly jobs: () => Iterable<KeptJob>;
  /** As the queue last said. */
  readonly depths: () => readonly QueueDepth[];
  readonly trouble: () => string | undefined;
  /** Of the source that was built; undefined: not known. */
  readonly revision?: string | undefined;
}

export function createJobsMetrics({ jobs, depths, trouble, revision }: MeasuredJobs): JobsMetrics {
  const registry = createRegistry("jobs", { revision });
  const registers = [registry];
  new Gauge({
    name: "atelier_jobs_jobs",
    help: "Jobs that are kept, by status.",
    labelNames: ["status"],
    registers,
    collect() {
      for (const status of JOB_STATUSES) this.set({ status }, 0);
      for (const { status } of jobs()) this.inc({ status });
    },
  });
  new Gauge({
    name: "atelier_jobs_items",
    help: "Items of all jobs that are kept, by state.",
    labelNames: ["state"],
    registers,
    collect() {
      for (const state of ITEM_STATES) this.set({ state }, 0);
      for (const { ledger } of jobs()) {
        const { counts } = ledger;
        for (const state of ITEM_STATES) this.inc({ state }, counts[state]);
      }
    },
  });
  new Gauge({
    name: "atelier_jobs_backlog_device_seconds",
    help: "Device seconds that the unfinished items of running jobs are predicted to take: what autoscaling looks at. Of a job with several models, each model's share is that of its kinds of pictures.",
    labelNames: ["class", "model"],
    registers,
    collect() {
      this.reset();
      for (const job of jobs()) {
        const { priority } = job.record;
        // A model stays at 0 while a job of it is kept, so that a fleet sees that there is nothing left to do.
        const leftMs = job.status === "queued" || job.status === "running" ? job.leftDeviceMs : 0;
        for (const [model, share] of modelShares(job.record.shapes)) {
          this.inc({ class: priority, model }, (leftMs * share) / 1_000);
        }
      }
    },
  });
  queueGauge(
    "items",
    "Items in the work queue, by class, model and whether a worker holds them.",
    ["held"],
    (depth, set) => {
      set({ held: "false" }, depth.waiting);
      set({ held: "true" }, depth.held);
    },
  );
  queueGauge(
    "oldest_seconds",
    "How long the oldest item that no worker holds has been in the work queue.",
    [],
    (depth, set) => set({}, depth.oldestMs / 1_000),
  );
  new Gauge({
    name: "atelier_jobs_queue_reachable",
    help: "1 while queue and object store answer, 0 while something waits for them.",
    registers,
    collect() {
      this.set(trouble() === undefined ? 1 : 0);
    },
  });
  const requests = new Counter({
    name: "atelier_jobs_requests_total",
    help: "HTTP requests that gateways passed on, answered; status 499 is a caller that went away.",
    labelNames: ["route", "method", "status"],
    registers,
  });
  const requestSeconds = new TracedHistogram({
    name: "atelier_jobs_request_duration_seconds",
    help: "From a request's first byte to the last byte of its answer.",
    labelNames: ["route"],
    buckets: DURATION_BUCKETS_S,
    registers,
  });
  const items = new Counter({
    name: "atelier_jobs_items_ended_total",
    help: "Items that ended, by how: done, failed or filtered.",
    labelNames: ["state"],
    registers,
  });
  const redeliveries = new Counter({
    name: "atelier_jobs_redeliveries_total",
    help: "Attempts at items beyond the first.",
    registers,
  });
  const deadLetters = new Counter({
    name: "atelier_jobs_dead_letters_total",
    help: "Items that failed as often as an item may.",
    registers,
  });
  const deviceSeconds = new Counter({
    name: "atelier_jobs_device_seconds_total",
    help: "Device seconds that items' pictures took.",
    labelNames: ["model"],
    registers,
  });
  const cost = new Counter({
    name: "atelier_jobs_image_cost_total",
    help: "What items' pictures cost by the price of a device hour that their jobs were submitted at, in units of the currency.",
    labelNames: ["model", "currency"],
    registers,
  });
  return {
    registry,
    requestEnded: ({ route, method, status, durationMs }) => {
      requests.inc({ route, method: METHODS.has(method) ? method : "other", status });
      requestSeconds.observe({ route }, durationMs / 1_000);
    },
    itemEnded: ({ state, attempts, deadLetter, made }) => {
      items.inc({ state });
      redeliveries.inc(Math.max(0, attempts - 1));
      if (deadLetter) deadLetters.inc();
      if (made === undefined) return;
      deviceSeconds.inc({ model: made.model }, made.deviceMs / 1_000);
      cost.inc({ model: made.model, currency: made.currency }, made.cost);
    },
  };

  function queueGauge(
    name: string,
    help: string,
    labelNames: readonly string[],
    show: (depth: QueueDepth, set: (labels: Record<string, string>, value: number) => void) => void,
  ): void {
    new Gauge({
      name: `atelier_jobs_queue_${name}`,
      help,
      labelNames: ["class", "model", ...labelNames],
      registers,
      collect() {
        this.reset();
        for (const depth of depths()) {
          const labels = { class: CLASS_NAMES.get(depth.priorityClass) ?? "standard", model: depth.model };
          show(depth, (more, value) => this.set({ ...labels, ...more }, value));
        }
      },
    });
  }
}
