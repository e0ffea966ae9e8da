import type { QueueDepth } from "@atelier/job-queue";
import { PriorityClass } from "@atelier/proto";
import { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, Histogram, type Registry } from "@atelier/telemetry";
import type { KeptJob } from "./engine/kept-job.ts";
import { ITEM_STATES, JOB_PRIORITIES, JOB_STATUSES } from "./job.ts";

const CLASS_NAMES = new Map(
  Object.entries(PriorityClass).map(([name, value]) => [value as number, name.toLowerCase()]),
);

/** What /metrics shows. No label is a job's or a tenant's, so that no caller can add a series. */
export interface JobsMetrics {
  readonly registry: Registry;
  readonly requests: Counter<"route" | "method" | "status">;
  readonly requestSeconds: Histogram<"route">;
  readonly items: Counter<"state">;
  readonly redeliveries: Counter;
  readonly deadLetters: Counter;
}

export interface MeasuredJobs {
  readonly jobs: () => Iterable<KeptJob>;
  /** As the queue last said. */
  readonly depths: () => readonly QueueDepth[];
  readonly trouble: () => string | undefined;
}

export function createJobsMetrics({ jobs, depths, trouble }: MeasuredJobs): JobsMetrics {
  const registry = createRegistry("jobs");
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
    help: "Device seconds that the unfinished items of running jobs are predicted to take, by class: what autoscaling looks at.",
    labelNames: ["class"],
    registers,
    collect() {
      for (const priority of JOB_PRIORITIES) this.set({ class: priority }, 0);
      for (const job of jobs()) {
        if (job.status !== "queued" && job.status !== "running") continue;
        this.inc({ class: job.record.priority }, job.leftDeviceMs / 1_000);
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
  return {
    registry,
    requests: new Counter({
      name: "atelier_jobs_requests_total",
      help: "HTTP requests that gateways passed on, answered.",
      labelNames: ["route", "method", "status"],
      registers,
    }),
    requestSeconds: new Histogram({
      name: "atelier_jobs_request_duration_seconds",
      help: "From a request's first byte to the last byte of its answer.",
      labelNames: ["route"],
      buckets: DURATION_BUCKETS_S,
      registers,
    }),
    items: new Counter({
      name: "atelier_jobs_items_ended_total",
      help: "Items that ended, by how: done, failed or filtered.",
      labelNames: ["state"],
      registers,
    }),
    redeliveries: new Counter({
      name: "atelier_jobs_redeliveries_total",
      help: "Attempts at items beyond the first.",
      registers,
    }),
    deadLetters: new Counter({
      name: "atelier_jobs_dead_letters_total",
      help: "Items that failed as often as an item may.",
      registers,
    }),
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
