import { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, Histogram, type Registry } from "@atelier/telemetry";
import type { Stage } from "./generation.ts";
import type { PipelineObserver, PipelineState } from "./pipeline.ts";
import { PRIORITY_CLASSES } from "./stages/order/service-order.ts";
import type { EmbeddingCounts } from "./stages/text-encode.ts";
import type { RunReport } from "./threads/denoise.thread.ts";

/** Seconds of one U-Net run, from a tiny model on a fast device to SDXL on a CPU. */
const STEP_BUCKETS_S = [0.002, 0.005, 0.01, 0.02, 0.035, 0.06, 0.1, 0.2, 0.35, 0.6, 1, 2, 5, 15];
const ROW_BUCKETS = [1, 2, 4, 6, 8, 12, 16, 24, 32, 64];

/** What a worker measures of itself. */
export class WorkerMetrics implements PipelineObserver {
  readonly registry: Registry;
  /** Set once there is a pipeline to ask. */
  state: () => PipelineState | undefined = () => undefined;
  readonly #requests: Counter<"outcome">;
  readonly #requestSeconds: Histogram<"outcome">;
  readonly #stageSeconds: Histogram<"stage">;
  readonly #stepSeconds: Histogram<"model">;
  readonly #batchRows: Histogram<"model">;
  readonly #embeddings: Counter<"outcome">;
  readonly #turns: Counter<"class">;
  readonly #preemptions: Counter;
  readonly #refusedRuns: Counter<"model">;
  readonly #busySeconds: Counter;
  #denoiseWaiting = 0;

  constructor(registry: Registry = createRegistry("worker")) {
    this.registry = registry;
    const registers = [registry];
    this.#requests = new Counter({
      name: "atelier_worker_requests_total",
      help: "Requests by outcome: ok, or the code of the error",
      labelNames: ["outcome"],
      registers,
    });
    this.#requestSeconds = new Histogram({
      name: "atelier_worker_request_seconds",
      help: "Time from a request's arrival to its end",
      labelNames: ["outcome"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#stageSeconds = new Histogram({
      name: "atelier_worker_stage_seconds",
      help: "Time that finished requests spent in a stage, waiting included",
      labelNames: ["stage"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#stepSeconds = new Histogram({
      name: "atelier_worker_step_seconds",
      help: "Time of one U-Net run on its lane",
      labelNames: ["model"],
      buckets: STEP_BUCKETS_S,
      registers,
    });
    this.#batchRows = new Histogram({
      name: "atelier_worker_step_batch_rows",
      help: "Rows in one U-Net run; an image takes two with guidance, one without",
      labelNames: ["model"],
      buckets: ROW_BUCKETS,
      registers,
    });
    this.#embeddings = new Counter({
      name: "atelier_worker_embeddings_total",
      help: "Prompts by where their embedding came from: hit (kept from before), shared (with another that waited), miss",
      labelNames: ["outcome"],
      registers,
    });
    this.#turns = new Counter({
      name: "atelier_worker_turns_total",
      help: "U-Net runs by the class of the image that led the batch",
      labelNames: ["class"],
      registers,
    });
    this.#preemptions = new Counter({
      name: "atelier_worker_preemptions_total",
      help: "Times that a started image gave way to more urgent work",
      registers,
    });
    this.#refusedRuns = new Counter({
      name: "atelier_worker_refused_runs_total",
      help: "U-Net runs that the device had no memory for; they are tried again in halves",
      labelNames: ["model"],
      registers,
    });
    this.#busySeconds = new Counter({
      name: "atelier_worker_denoise_busy_seconds_total",
      help: "Time in which the denoise lanes ran, each lane counting for its share of those side by side",
      registers,
    });
    this.#gauge("atelier_worker_requests_in_flight", "Requests accepted and not finished", (s) => s.requestsInFlight);
    this.#gauge("atelier_worker_requests_free", "Requests that would still be accepted", (s) => s.requestsFree);
    this.#gauge(
      "atelier_worker_denoise_busy_ratio",
      "Share of the last ten seconds in which the denoise lanes ran",
      (s) => s.denoiseBusyRatio,
    );
    this.#gauge(
      "atelier_worker_memory_counted_bytes",
      "Weights and the largest runs so far of the models in memory, as the budget counts them",
      (s) => s.memoryUsedBytes,
    );
    this.#gauge(
      "atelier_worker_memory_budget_bytes",
      "What models and their step batches may take together; +Inf where it is not known",
      (s) => s.memoryBudgetBytes,
    );
    this.#backlogGauge();
    this.#modelsGauge();
    this.#gauge(
      "atelier_worker_denoise_waiting",
      "Images that wait for a place in the step batch",
      () => this.#denoiseWaiting,
    );
  }

  requestEnded(outcome: string, ms: number): void {
    this.#requests.inc({ outcome });
    this.#requestSeconds.observe({ outcome }, ms / 1000);
  }

  ran({ model, rows, ms, lanes, priorityClass, refused, waiting, preempted }: RunReport): void {
    this.#busySeconds.inc(ms / 1000 / lanes);
    this.#preemptions.inc(preempted);
    if (refused) {
      this.#refusedRuns.inc({ model });
      return;
    }
    this.#turns.inc({ class: priorityClass });
    this.#stepSeconds.observe({ model }, ms / 1000);
    this.#batchRows.observe({ model }, rows);
    this.#denoiseWaiting = waiting;
  }

  stageTook(stage: Stage, ms: number): void {
    this.#stageSeconds.observe({ stage }, ms / 1000);
  }

  embedded(counts: EmbeddingCounts): void {
    for (const [outcome, prompts] of Object.entries(counts)) this.#embeddings.inc({ outcome }, prompts);
  }

  #backlogGauge(): void {
    const metrics = this;
    new Gauge({
      name: "atelier_worker_backlog_seconds",
      help: "Predicted device time of accepted work, by class",
      labelNames: ["class"],
      registers: [this.registry],
      collect() {
        const state = metrics.state();
        if (state === undefined) return;
        for (const each of PRIORITY_CLASSES) this.set({ class: each }, state.backlogMs[each] / 1000);
      },
    });
  }

  #modelsGauge(): void {
    const metrics = this;
    new Gauge({
      name: "atelier_worker_model_resident",
      help: "1 for a model whose networks are open and warm, 0 for one on disk or on its way",
      labelNames: ["model"],
      registers: [this.registry],
      collect() {
        const state = metrics.state();
        if (state === undefined) return;
        for (const { id, status } of state.places) this.set({ model: id }, status === "resident" ? 1 : 0);
      },
    });
  }

  #gauge(name: string, help: string, read: (state: PipelineState) => number): void {
    const metrics = this;
    new Gauge({
      name,
      help,
      registers: [this.registry],
      collect() {
        const state = metrics.state();
        if (state !== undefined) this.set(read(state));
      },
    });
  }
}
