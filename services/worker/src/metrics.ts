import type { ServingError } from "@atelier/core";
import {
  Counter,
  createRegistry,
  DURATION_BUCKETS_S,
  Gauge,
  Histogram,
  type Registry,
  TracedHistogram,
} from "@atelier/telemetry";
import type { Stage } from "./generation.ts";
import type { PipelineObserver, PipelineState } from "./pipeline.ts";
import { PRIORITY_CLASSES, type PriorityClass } from "./stages/order/service-order.ts";
import type { EmbeddingCounts } from "./stages/text-encode.ts";
import type { RunReport } from "./threads/denoise.thread.ts";

/** Seconds of one U-Net run, from a tiny model on a fast device to SDXL on a CPU. */
const STEP_BUCKETS_S = [0.002, 0.005, 0.01, 0.02, 0.035, 0.06, 0.1, 0.2, 0.35, 0.6, 1, 2, 5, 15];
const ROW_BUCKETS = [1, 2, 4, 6, 8, 12, 16, 24, 32, 64];
/** Seconds, from a tiny model in the page cache to SDXL with its TensorRT engines to be built. */
const LOAD_BUCKETS_S = [0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900];
const RATIO_BUCKETS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];

/** What a worker measures of itself. */
export class WorkerMetrics implements PipelineObserver {
  readonly registry: Registry;
  /** Set once there is a pipeline to ask. */
  state: () => PipelineState | undefined = () => undefined;
  readonly #requests: Counter<"outcome">;
  readonly #requestSeconds: TracedHistogram<"outcome">;
  readonly #queueSeconds: TracedHistogram<"class">;
  readonly #stageSeconds: TracedHistogram<"stage">;
  readonly #stepSeconds: TracedHistogram<"model">;
  readonly #batchRows: Histogram<"model">;
  readonly #occupancy: Histogram;
  readonly #rows: Counter<"model">;
  readonly #checkpoints: Counter;
  readonly #checkpointBytes: Counter;
  readonly #moves: Counter<"direction">;
  readonly #loads: Counter<"model" | "outcome">;
  readonly #loadSeconds: Histogram<"model">;
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
      help: "Requests by outcome: ok, or the code of the error.",
      labelNames: ["outcome"],
      registers,
    });
    this.#requestSeconds = new TracedHistogram({
      name: "atelier_worker_request_duration_seconds",
      help: "Time from a request's arrival to its end.",
      labelNames: ["outcome"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#queueSeconds = new TracedHistogram({
      name: "atelier_worker_queue_wait_seconds",
      help: "How long requests waited for their model, the text encoder and a place in the step batch before their first step, by class.",
      labelNames: ["class"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#stageSeconds = new TracedHistogram({
      name: "atelier_worker_stage_seconds",
      help: "Time that finished requests spent in a stage, waiting included.",
      labelNames: ["stage"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#stepSeconds = new TracedHistogram({
      name: "atelier_worker_step_seconds",
      help: "Time of one U-Net run on its lane.",
      labelNames: ["model"],
      buckets: STEP_BUCKETS_S,
      registers,
    });
    this.#batchRows = new Histogram({
      name: "atelier_worker_step_batch_rows",
      help: "Rows in one U-Net run; an image takes two with guidance, one without.",
      labelNames: ["model"],
      buckets: ROW_BUCKETS,
      registers,
    });
    this.#occupancy = new Histogram({
      name: "atelier_worker_step_batch_occupancy_ratio",
      help: "Rows of one U-Net run over those that it could have had: as many images as a step batch may have, and the memory holds. Low where little is to be done, or where larger batches were learned to be no faster.",
      buckets: RATIO_BUCKETS,
      registers,
    });
    this.#rows = new Counter({
      name: "atelier_worker_rows_total",
      help: "Rows that the U-Net predicted; none of them is padding, since runs are as large as what is in them.",
      labelNames: ["model"],
      registers,
    });
    this.#checkpoints = new Counter({
      name: "atelier_worker_checkpoints_total",
      help: "States of unfinished images that were told to whoever asked for them.",
      registers,
    });
    this.#checkpointBytes = new Counter({
      name: "atelier_worker_checkpoint_bytes_total",
      help: "What those states weigh: latent and sampler history.",
      registers,
    });
    this.#moves = new Counter({
      name: "atelier_worker_moves_total",
      help: "Images that moved between workers: in, those that went on here from a state; out, those that this worker left to others as it drained.",
      labelNames: ["direction"],
      registers,
    });
    for (const direction of ["in", "out"]) this.#moves.inc({ direction }, 0);
    this.#loads = new Counter({
      name: "atelier_worker_model_loads_total",
      help: "Loads of models into memory by outcome: ok, or the code of the error.",
      labelNames: ["model", "outcome"],
      registers,
    });
    this.#loadSeconds = new Histogram({
      name: "atelier_worker_model_load_seconds",
      help: "How long models took to be in memory and warm, of loads that succeeded.",
      labelNames: ["model"],
      buckets: LOAD_BUCKETS_S,
      registers,
    });
    this.#embeddings = new Counter({
      name: "atelier_worker_embeddings_total",
      help: "Prompts by where their embedding came from: hit (kept from before), shared (with another that waited), miss.",
      labelNames: ["outcome"],
      registers,
    });
    this.#turns = new Counter({
      name: "atelier_worker_turns_total",
      help: "U-Net runs by the class of the image that led the batch.",
      labelNames: ["class"],
      registers,
    });
    this.#preemptions = new Counter({
      name: "atelier_worker_preemptions_total",
      help: "Times that a started image gave way to more urgent work.",
      registers,
    });
    this.#refusedRuns = new Counter({
      name: "atelier_worker_refused_runs_total",
      help: "U-Net runs that the device had no memory for; they are tried again in halves.",
      labelNames: ["model"],
      registers,
    });
    this.#busySeconds = new Counter({
      name: "atelier_worker_denoise_busy_seconds_total",
      help: "Time in which the denoise lanes ran, each lane counting for its share of those side by side.",
      registers,
    });
    this.#gauge("atelier_worker_requests_in_flight", "Requests accepted and not finished.", (s) => s.requestsInFlight);
    this.#gauge("atelier_worker_requests_free", "Requests that would still be accepted.", (s) => s.requestsFree);
    this.#gauge(
      "atelier_worker_denoise_busy_ratio",
      "Share of the last ten seconds in which the denoise lanes ran.",
      (s) => s.denoiseBusyRatio,
    );
    this.#gauge(
      "atelier_worker_memory_counted_bytes",
      "Weights and the largest runs so far of the models in memory, as the budget counts them.",
      (s) => s.memoryUsedBytes,
    );
    this.#gauge(
      "atelier_worker_memory_budget_bytes",
      "What models and their step batches may take together; +Inf where it is not known.",
      (s) => s.memoryBudgetBytes,
    );
    this.#backlogGauge();
    this.#modelsGauge();
    this.#gauge(
      "atelier_worker_denoise_waiting",
      "Images that wait for a place in the step batch.",
      () => this.#denoiseWaiting,
    );
  }

  requestEnded(outcome: string, ms: number): void {
    this.#requests.inc({ outcome });
    this.#requestSeconds.observe({ outcome }, ms / 1000);
  }

  ran(
    { model, rows, rowsMax, ms, lanes, priorityClass, refused, waiting, preempted }: RunReport,
    traceId: string | undefined,
  ): void {
    this.#busySeconds.inc(ms / 1000 / lanes);
    this.#preemptions.inc(preempted);
    if (refused) {
      this.#refusedRuns.inc({ model });
      return;
    }
    this.#turns.inc({ class: priorityClass });
    this.#stepSeconds.observe({ model }, ms / 1000, traceId);
    this.#batchRows.observe({ model }, rows);
    this.#rows.inc({ model }, rows);
    this.#occupancy.observe(rows / rowsMax);
    this.#denoiseWaiting = waiting;
  }

  stageTook(stage: Stage, ms: number, traceId: string | undefined): void {
    this.#stageSeconds.observe({ stage }, ms / 1000, traceId);
  }

  begun(priorityClass: PriorityClass, waitedMs: number, traceId: string | undefined): void {
    this.#queueSeconds.observe({ class: priorityClass }, waitedMs / 1000, traceId);
  }

  checkpointed(bytes: number): void {
    this.#checkpoints.inc();
    this.#checkpointBytes.inc(bytes);
  }

  moved(direction: "in" | "out", pictures: number): void {
    this.#moves.inc({ direction }, pictures);
  }

  loadEnded(model: string, ms: number, failure: ServingError | undefined): void {
    this.#loads.inc({ model, outcome: failure?.code ?? "ok" });
    if (failure === undefined) this.#loadSeconds.observe({ model }, ms / 1000);
  }

  embedded(counts: EmbeddingCounts): void {
    for (const [outcome, prompts] of Object.entries(counts)) this.#embeddings.inc({ outcome }, prompts);
  }

  #backlogGauge(): void {
    const metrics = this;
    new Gauge({
      name: "atelier_worker_backlog_device_seconds",
      help: "Predicted device time of accepted work, by class.",
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
      help: "1 for a model whose networks are open and warm, 0 for one on disk or on its way.",
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
