import { invariant } from "@atelier/core";
import { type BacklogMs, type JobsLeftMs, StepCosts } from "@atelier/gateway/placement";
import { RowTimeSchema, StepTimeSchema } from "@atelier/proto";
import {
  Backlog,
  GpuTimes,
  type ScheduledJob,
  type SimulatedGpu,
  StatePublisher,
  type StepBatch,
  StepScheduler,
  StepTimes,
} from "@atelier/worker";
import { create } from "@bufbuild/protobuf";
import type { Simulation } from "./simulation.ts";
import { areaOf, MODELS, type SimModel, type SimRequest } from "./trace.ts";

/**
 * How a worker serves: `fifo` is the textbook's server, one request from start to end after the other, in the order of
 * arrival; `steps` is ours without and `batches` ours with step batches.
 */
export const DISCIPLINES = ["fifo", "steps", "batches"] as const;
export type Discipline = (typeof DISCIPLINES)[number];

export interface SimWorkerOptions {
  readonly name: string;
  readonly gpu: SimulatedGpu;
  readonly discipline: Discipline;
  /** Models in memory at once; all of them by default. */
  readonly residentMax: number;
  readonly queueMax: number;
}

/** What a worker says of itself: the wire's WorkerState, as far as placing goes by it. */
export interface SimState {
  readonly sequence: bigint;
  readonly backlogMs: BacklogMs;
  /** Of one that serves in the order of arrival there is nothing to tell. */
  readonly jobsLeftMs: JobsLeftMs | undefined;
  readonly requestsFree: number;
  readonly places: ReadonlyMap<string, SimPlace>;
  readonly costs: StepCosts;
  readonly draining: boolean;
}

export interface SimPlace {
  readonly status: "resident" | "loading" | "on_disk";
  /** Of a load, 0..1. */
  readonly progress: number;
}

const STEP_BATCH_MAX = 8;
const AGEING_MS = 2000;
/** The table of costs is made anew so often at most: it changes slowly, and making it is not what is simulated. */
const COSTS_EVERY_MS = 1000;

interface Job extends ScheduledJob {
  readonly id: string;
  readonly request: SimRequest;
  readonly finished: () => void;
  stepsDone: number;
}

/**
 * A worker in virtual time: the production scheduler, step times, backlog and state publisher over a GPU of published
 * times. Text encoding and decoding are stages of their own, one request at a time each, as on the simulated device.
 */
export class SimWorker {
  readonly name: string;
  readonly publisher: StatePublisher<SimState>;
  readonly #sim: Simulation;
  readonly #options: SimWorkerOptions;
  readonly #times = new StepTimes();
  readonly #backlog = new Backlog(this.#times);
  readonly #scheduler: StepScheduler<Job>;
  readonly #queue: Job[] = []; // fifo
  readonly #shelf: SimShelf;
  readonly #text: SimStage;
  readonly #decode: SimStage;
  readonly #costs: { atMs: number; costs: StepCosts };
  #running = false;
  #busyMs = 0;
  #inFlight = 0;
  #denoising = 0;
  draining = false;
  /** Told when it has one request less to denoise. */
  onFree: () => void = () => {};
  /** Every request that it took, for those who check. */
  readonly took: number[] = [];

  constructor(sim: Simulation, options: SimWorkerOptions) {
    this.#sim = sim;
    this.#options = options;
    this.name = options.name;
    this.#scheduler = new StepScheduler<Job>({
      lanesOf: () => ({ wideThreads: 1, narrowThreads: 0, narrow: 0, narrowMax: 0 }),
      times: this.#times,
      stepBatchMax: options.discipline === "batches" ? STEP_BATCH_MAX : 1,
      ageingMs: AGEING_MS,
    });
    this.#shelf = new SimShelf(sim, options.residentMax, () => this.#changed());
    this.#text = new SimStage(sim);
    this.#decode = new SimStage(sim);
    this.#warmUp();
    this.#costs = { atMs: 0, costs: this.#readCosts() };
    this.publisher = new StatePublisher(sim, (sequence) => this.#state(sequence));
  }

  /** Requests that it has and that are not at their last step yet. */
  get denoising(): number {
    return this.#denoising;
  }

  holds({ id }: SimModel): boolean {
    return this.#shelf.places.get(id)?.status === "resident";
  }

  drain(): void {
    this.draining = true;
    this.#changed();
  }

  /** Milliseconds of work that it has, to the last step: what only a perfect observer sees. */
  get backlogMs(): number {
    return this.#backlog.totalMs;
  }

  /** Milliseconds in which it denoised, until the end of the last run. */
  get busyMs(): number {
    return this.#busyMs;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Takes a request, and numbers that among its states, as `Accepted` does. */
  accept(request: SimRequest, finished: () => void): { readonly sequence: bigint } {
    invariant(!this.draining, `${this.name} drains and is sent nothing`);
    this.took.push(request.id);
    this.#inFlight += 1;
    this.#denoising += 1;
    const job = jobOf(request, finished);
    this.#backlog.add(job.id, {
      model: job.model,
      priorityClass: "standard",
      rows: job.rowCount,
      passes: job.passesLeft,
    });
    this.#shelf.use(request.model, () =>
      this.#text.run(this.#gpu(request.model).textEncodeMs(2), () => this.#enqueue(job)),
    );
    this.publisher.tookOn();
    return { sequence: this.publisher.nextSequence() };
  }

  #enqueue(job: Job): void {
    if (this.#options.discipline === "fifo") this.#queue.push(job);
    else this.#scheduler.add(job, this.#sim.nowMs());
    this.#go();
  }

  #go(): void {
    if (this.#running) return;
    if (this.#options.discipline === "fifo") this.#goFifo();
    else this.#goSteps();
  }

  #goSteps(): void {
    const batch = this.#scheduler.next(this.#sim.nowMs(), Number.POSITIVE_INFINITY);
    if (batch === undefined) return;
    this.#running = true;
    const ms = this.#runMs(batch.jobs[0]!, batch.rowCount);
    this.#sim.after(ms, () => {
      this.#running = false;
      this.#ran(batch, ms);
    });
  }

  #ran(batch: StepBatch<Job>, ms: number): void {
    const { model, shape, rowCount: rows, threads, lanes } = batch;
    this.#busyMs += ms;
    this.#times.observe({ model, shape, rows, ms, threads, lane: "wide", lanes });
    for (const job of batch.jobs) job.stepsDone += 1;
    this.#scheduler.ended(batch, this.#sim.nowMs(), { fitted: true });
    for (const job of batch.jobs) {
      this.#backlog.progress(job.id, job.stepsDone);
      if (job.stepsDone < job.request.steps) continue;
      this.#scheduler.remove(job);
      this.#denoised(job);
    }
    this.#changed();
    this.#go();
  }

  #goFifo(): void {
    const job = this.#queue[0];
    if (job === undefined) return;
    this.#running = true;
    const ms = this.#runMs(job, job.rowCount);
    this.#sim.after(ms, () => {
      this.#running = false;
      this.#busyMs += ms;
      job.stepsDone += 1;
      this.#backlog.progress(job.id, job.stepsDone);
      if (job.stepsDone === job.request.steps) {
        this.#queue.shift();
        this.#denoised(job);
      }
      this.#changed();
      this.#go();
    });
  }

  #denoised(job: Job): void {
    const { request } = job;
    this.#denoising -= 1;
    this.onFree();
    this.#decode.run(this.#gpu(request.model).decodeMs({ area: areaOf(request), pictures: 1 }), () => {
      this.#backlog.remove(job.id);
      this.#shelf.release(request.model);
      this.#inFlight -= 1;
      this.#changed();
      job.finished();
    });
  }

  #runMs({ request }: Job, rows: number): number {
    return this.#gpu(request.model).stepMs({ area: areaOf(request), rows });
  }

  #gpu(model: SimModel): GpuTimes {
    return new GpuTimes(this.#options.gpu, model.family === "sdxl" ? "sdxl" : "sd15");
  }

  /** As a worker does when it loads a model: two runs at the native size. */
  #warmUp(): void {
    for (const model of MODELS) {
      const shape = shapeOf(model.nativeSide, model.nativeSide);
      const ms = this.#gpu(model).stepMs({ area: shape.height * shape.width, rows: 2 });
      for (let run = 0; run < 2; run++)
        this.#times.observe({ model: model.id, shape, rows: 2, ms, threads: 1, lane: "wide", lanes: 1 });
    }
  }

  #changed(): void {
    this.publisher?.changed();
  }

  #state(sequence: bigint): SimState {
    const nowMs = this.#sim.nowMs();
    if (nowMs - this.#costs.atMs > COSTS_EVERY_MS)
      Object.assign(this.#costs, { atMs: nowMs, costs: this.#readCosts() });
    return {
      sequence,
      backlogMs: this.#backlog.byClassMs,
      jobsLeftMs: this.#options.discipline === "fifo" ? undefined : this.#backlog.jobsLeftMs,
      requestsFree: Math.max(0, this.#options.queueMax - this.#inFlight),
      places: this.#shelf.places,
      costs: this.#costs.costs,
      draining: this.draining,
    };
  }

  #readCosts(): StepCosts {
    return new StepCosts({
      rowTimes: this.#times.rowTimes.map((time) => create(RowTimeSchema, time)),
      stepTimes: this.#times.toJSON().map((time) => create(StepTimeSchema, time)),
    });
  }
}

/** One thing after another. */
class SimStage {
  readonly #sim: Simulation;
  #freeAtMs = 0;

  constructor(sim: Simulation) {
    this.#sim = sim;
  }

  run(ms: number, then: () => void): void {
    const nowMs = this.#sim.nowMs();
    this.#freeAtMs = Math.max(nowMs, this.#freeAtMs) + ms;
    this.#sim.after(this.#freeAtMs - nowMs, then);
  }
}

/** Models in memory: so many at once; the one that was not used for longest makes room, if nobody uses it now. */
class SimShelf {
  readonly #sim: Simulation;
  readonly #max: number;
  readonly #onChange: () => void;
  /** The one used last is last. */
  readonly #resident = new Map<
    string,
    { users: number; readyAtMs: number; startedAtMs: number; waiting: (() => void)[] }
  >();
  readonly #wanting: { model: SimModel; then: () => void }[] = [];

  constructor(sim: Simulation, max: number, onChange: () => void) {
    this.#sim = sim;
    this.#max = max;
    this.#onChange = onChange;
    for (const { id } of MODELS.slice(0, max))
      this.#resident.set(id, { users: 0, readyAtMs: 0, startedAtMs: 0, waiting: [] });
  }

  get places(): SimState["places"] {
    const nowMs = this.#sim.nowMs();
    return new Map(
      MODELS.map(({ id }): [string, SimPlace] => {
        const entry = this.#resident.get(id);
        if (entry === undefined) return [id, { status: "on_disk", progress: 0 }];
        if (entry.readyAtMs <= nowMs) return [id, { status: "resident", progress: 1 }];
        const progress = (nowMs - entry.startedAtMs) / (entry.readyAtMs - entry.startedAtMs);
        return [id, { status: "loading", progress }];
      }),
    );
  }

  use(model: SimModel, then: () => void): void {
    const entry = this.#resident.get(model.id);
    if (entry === undefined && !this.#makeRoom()) {
      this.#wanting.push({ model, then });
      return;
    }
    const nowMs = this.#sim.nowMs();
    const used = entry ?? { users: 0, readyAtMs: nowMs + model.loadMs, startedAtMs: nowMs, waiting: [] };
    used.users += 1;
    this.#resident.delete(model.id);
    this.#resident.set(model.id, used);
    if (used.readyAtMs <= nowMs) {
      then();
      return;
    }
    used.waiting.push(then);
    if (entry !== undefined) return;
    this.#sim.after(model.loadMs, () => {
      for (const waiting of used.waiting.splice(0)) waiting();
      this.#onChange();
    });
  }

  release({ id }: SimModel): void {
    this.#resident.get(id)!.users -= 1;
    for (const { model, then } of this.#wanting.splice(0)) this.use(model, then);
  }

  #makeRoom(): boolean {
    if (this.#resident.size < this.#max) return true;
    for (const [id, { users }] of this.#resident) {
      if (users > 0) continue;
      this.#resident.delete(id);
      return true;
    }
    return false;
  }
}

function jobOf(request: SimRequest, finished: () => void): Job {
  const { id, model, width, height, steps, rows } = request;
  const shape = shapeOf(width, height);
  return {
    id: String(id),
    request,
    finished,
    stepsDone: 0,
    order: { priorityClass: "standard", tenant: "", finishAtMs: undefined },
    model: model.id,
    shape,
    sequenceLength: 77,
    extraInputs: "",
    rowCount: rows,
    get passesLeft() {
      return [{ shape, steps: steps - this.stepsDone }];
    },
  };
}

function shapeOf(width: number, height: number) {
  return { channels: 4, height: height / 8, width: width / 8 };
}
