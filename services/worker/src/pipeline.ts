import { randomUUID } from "node:crypto";
import { type Clock, checkPromptText, Deadline, ServingError, systemClock, toServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import { Backlog } from "./backlog.ts";
import type { ModelView } from "./bulk/bulk-work.ts";
import { BusyRatio } from "./busy-ratio.ts";
import { type DeviceSpec, decoderSessions, deviceName, narrowLanesOf } from "./device/device.ts";
import { markImage } from "./device/simulated/mark.ts";
import type { GenerationCall, GenerationOutcome, Stage } from "./generation.ts";
import { ImageMaker } from "./image-maker.ts";
import { totalBytes } from "./memory/file-bytes.ts";
import { MemoryBudget, type MemoryDemand } from "./memory/memory-budget.ts";
import { cpuBudgetBytes, memoryOf } from "./memory/model-memory.ts";
import { type StepRoom, sameRoom } from "./memory/step-room.ts";
import { ModelLoader } from "./model-loader.ts";
import { type Claim, type ModelPlace, ModelShelf } from "./model-shelf.ts";
import { allOf, type Model, readModels } from "./models.ts";
import { planPhases } from "./phases.ts";
import { planRequest } from "./plan-request.ts";
import type { GenerationRequest } from "./request.ts";
import { demandOf, parseJobId, Running, type RunningParts } from "./running.ts";
import type { Prediction } from "./stages/denoise-job.ts";
import { QUALITY_DEFAULT, type RgbImage } from "./stages/image-file.ts";
import { readInitImage } from "./stages/init-image.ts";
import { batchSize } from "./stages/order/batch-size.ts";
import type { PriorityClass } from "./stages/order/service-order.ts";
import { drawPreview, encodePreview, type PreviewMap } from "./stages/preview.ts";
import type { EmbeddingCounts } from "./stages/text-encode.ts";
import { type RowTime, type StepTime, StepTimes } from "./step-times.ts";
import { StepTimesFile } from "./step-times-file.ts";
import type { DenoiseReport, RunReport } from "./threads/denoise.thread.ts";
import { errorOf } from "./threads/messages.ts";
import { openStageThreads, type StageThreads } from "./threads/stage-threads.ts";

export interface PipelineOptions {
  /** Bundle folders: the models there are. */
  readonly bundleDirs: readonly string[];
  readonly device: DeviceSpec;
  readonly limits: PipelineLimits;
  /** What models and their step batches may take together; by default a share of the machine's memory on a CPU. */
  readonly memoryBudgetBytes?: number | undefined;
  /**
   * Bytes of the device's memory that the process has, to learn from; undefined where that cannot be seen. By default the
   * process's resident memory on a CPU, and nothing elsewhere.
   */
  readonly residentBytes?: () => number | undefined;
  /** Hears what it wants to of what happens, for metrics. */
  readonly observer?: Partial<PipelineObserver>;
  /** Folder where learned step times are kept between runs; nowhere without it. */
  readonly stateDir?: string | undefined;
  /** Something is amiss that no request suffers from. */
  readonly onProblem?: (error: ServingError) => void;
  /** A bug has ended a stage. The process cannot go on. */
  readonly onFatal: (error: Error) => void;
  readonly clock?: Clock;
}

export interface PipelineLimits {
  /** Requests accepted and not finished; one more is refused. */
  readonly queueMax: number;
  /** The same of those that the worker pulls, which have places of their own. Absent: it pulls none. */
  readonly pulledMax?: number;
  /** Images in one U-Net run. */
  readonly stepBatchMax: number;
  /** A class of requests that could run and got no turn for so long gets the next step batch. */
  readonly ageingMs?: number;
  /** Pictures of more pixels are decoded in tiles; absent: of more than 1024 x 1024. */
  readonly decodeTilePixels?: number;
}

export interface PipelineObserver {
  /** `traceId`: of a request in it, where one is recorded. */
  ran(report: RunReport, traceId: string | undefined): void;
  stageTook(stage: Stage, ms: number, traceId: string | undefined): void;
  /** A request's first step was made; it had waited so long for its model, the text encoder and the step batch. */
  begun(priorityClass: PriorityClass, waitedMs: number, traceId: string | undefined): void;
  /** A picture's state was told, of so many bytes. */
  checkpointed(bytes: number): void;
  /** Pictures went on here from where another worker left them, or were left for another. */
  moved(direction: "in" | "out", pictures: number): void;
  /** A load ended; `failure` undefined: the model is in memory. */
  loadEnded(model: string, ms: number, failure: ServingError | undefined): void;
  /** Where a request's prompts were embedded. */
  embedded(counts: EmbeddingCounts): void;
}

export interface PipelineState {
  /** Those that were pulled included. */
  readonly requestsInFlight: number;
  /** Of those that others send. */
  readonly requestsFree: number;
  /** Denoising work accepted and not done, in predicted device milliseconds. */
  readonly backlogMs: Readonly<Record<PriorityClass, number>>;
  /** The same job by job. */
  readonly jobsLeftMs: Readonly<Record<PriorityClass, readonly number[]>>;
  /** Share of the last ten seconds in which the denoise lanes ran, 0..1. */
  readonly denoiseBusyRatio: number;
  readonly stepTimes: readonly StepTime[];
  readonly rowTimes: readonly RowTime[];
  /** Every model, in memory or not. */
  readonly places: readonly ModelPlace[];
  /** As counted: weights and the largest runs so far of what is in memory. */
  readonly memoryUsedBytes: number;
  /** Infinity where it is not known. */
  readonly memoryBudgetBytes: number;
  /** Learned milliseconds of one step of one image with guidance at the model's native size, by model. */
  readonly stepMs: ReadonlyMap<string, number>;
}

/** Whether it took a request on, or anything else happened. */
export type PipelineChange = "took-on" | "went-on";

/**
 * Reads the bundles and starts the stages. Models are loaded by `preload()`, or when a request first asks for them.
 *
 * @throws ServingError INVALID_BUNDLE: everything that is wrong with any bundle, in one message.
 */
export async function createPipeline(options: PipelineOptions): Promise<Pipeline> {
  const models = await readModels(options.bundleDirs);
  const { onProblem = () => {} } = options;
  const timesFile =
    options.stateDir === undefined
      ? undefined
      : new StepTimesFile({ dir: options.stateDir, device: timesKey(options.device), clock: systemClock, onProblem });
  const known = (await timesFile?.load(digests(models))) ?? [];
  const times = StepTimes.fromJSON(known);
  const backlog = new Backlog(times);
  // The threads report before the pipeline exists; nothing runs in them before it does.
  let pipeline: Pipeline | undefined;
  const numImagesMax = Math.max(...[...models.values()].map(({ limits }) => limits.numImagesMax));
  const threads = await openStageThreads({
    ...options,
    limits: { ageingMs: AGEING_MS_DEFAULT, ...options.limits, numImagesMax },
    stepTimes: known,
    onReport: (report) => pipeline?.heardReport(report),
  });
  pipeline = new Pipeline(options, { models, threads, times, timesFile, backlog });
  return pipeline;
}

/** Text encode -> denoise -> image decode. Admits requests, takes each through the stages, and knows what is left. */
export class Pipeline {
  readonly models: ReadonlyMap<string, Model>;
  readonly #threads: StageThreads;
  readonly #maker: ImageMaker;
  readonly #times: StepTimes;
  readonly #timesFile: StepTimesFile | undefined;
  readonly #device: DeviceSpec;
  readonly #busy = new BusyRatio(BUSY_WINDOW_MS);
  readonly #onProblem: (error: ServingError) => void;
  readonly #backlog: Backlog;
  readonly #limits: PipelineLimits;
  readonly #observer: Partial<PipelineObserver> | undefined;
  readonly #clock: Clock;
  readonly #stop = new AbortController();
  readonly #inFlight = new Map<string, Running>();
  readonly #listeners = new Set<(change: PipelineChange) => void>();
  readonly #budget: MemoryBudget;
  readonly #shelf: ModelShelf;
  /** What the denoise thread was last told, by model. */
  readonly #rooms = new Map<string, StepRoom>();
  /** Requests that are about to be admitted: their picture is being read, or room is made for them. */
  readonly #entering = { sent: 0, pulled: 0 };
  /** Requests admitted so far, warm-ups left out. */
  #admitted = 0;
  #warmingUp = 0;
  #waitingForRoom = 0;
  /** What was last asked of each model. */
  readonly #lastWork = new Map<string, { readonly shape: LatentShape; readonly rows: number }>();

  constructor(
    options: PipelineOptions,
    parts: {
      models: ReadonlyMap<string, Model>;
      threads: StageThreads;
      times: StepTimes;
      timesFile: StepTimesFile | undefined;
      backlog: Backlog;
    },
  ) {
    const { limits, observer, onProblem = () => {}, clock = systemClock } = options;
    this.models = parts.models;
    this.#threads = parts.threads;
    this.#times = parts.times;
    this.#timesFile = parts.timesFile;
    this.#device = options.device;
    this.#onProblem = onProblem;
    this.#backlog = parts.backlog;
    this.#limits = limits;
    this.#observer = observer;
    this.#clock = clock;
    this.#maker = new ImageMaker({ threads: parts.threads, clock, observer, stopped: this.#stop.signal });
    const onCpu = deviceName(options.device) === "cpu";
    const models = [...this.models.values()];
    this.#budget = new MemoryBudget({
      budgetBytes: options.memoryBudgetBytes ?? (onCpu ? cpuBudgetBytes() : Infinity),
      models: models.map(memoryOf),
      narrowLanesMax: narrowLanesOf(options.device),
      decoderSessions: decoderSessions(options.device),
    });
    const io = new ModelLoader({
      models: this.models,
      threads: this.#threads,
      budget: this.#budget,
      warmUp: (model) => this.#warmUp(model),
      onNote: (note) => onProblem(new ServingError("INVALID_BUNDLE", note)),
      activity: () => (this.#inFlight.size > this.#warmingUp ? undefined : this.#admitted),
      // A GPU's memory is no part of the process's.
      residentBytes: options.residentBytes ?? (() => (onCpu ? process.memoryUsage.rss() : undefined)),
    });
    this.#shelf = new ModelShelf({
      models: models.map(({ bundle, fileBytes }) => ({ id: bundle.id, fileBytes: totalBytes(fileBytes) })),
      budget: this.#budget,
      io,
      clock,
      // TensorRT builds its engines when a network first opens and runs.
      preparationMaxMs: deviceName(options.device) === "tensorrt" ? WARM_UP_MAX_MS : 0,
      onChange: () => this.#changed(),
      onLoadEnded: (id, ms, failure) => observer?.loadEnded?.(id, ms, failure),
    });
  }

  /**
   * Loads models one after another, so that each is measured alone: those named, or without names the first, and
   * further ones in order while they fit.
   *
   * @throws ServingError MODEL_NOT_FOUND; otherwise everything that kept any of them from loading, in one message.
   */
  async preload(ids?: readonly string[]): Promise<void> {
    const failures: unknown[] = [];
    for (const [i, id] of (ids ?? [...this.models.keys()]).entries()) {
      if (ids === undefined && i > 0 && !this.#shelf.hasRoomFor(id)) continue;
      await this.loadModel(id, {
        signal: this.#stop.signal,
        deadline: Deadline.after(this.#clock, PRELOAD_MAX_MS),
      }).catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw allOf(failures);
  }

  /** Makes a model resident; idle ones make room. @throws ServingError as `ModelShelf.load`. */
  loadModel(id: string, until: { readonly signal: AbortSignal; readonly deadline: Deadline }): Promise<void> {
    return this.#shelf.load(id, until);
  }

  /** Takes an idle model out of memory; gives the bytes that are free then. @throws ServingError as `ModelShelf.unload`. */
  unloadModel(id: string): Promise<number> {
    return this.#shelf.unload(id);
  }

  /**
   * Makes the images of one request; events come in order. Rejects once every stage has let go of it. A model that is on
   * disk is loaded, and idle ones make room for it; "accepted" comes before a load ends.
   *
   * @throws ServingError INVALID_REQUEST, MODEL_NOT_FOUND, OVERLOADED before "accepted", and what a failed load of the
   *   model has left; after it INVALID_REQUEST for a prompt whose weights or length are out of range,
   *   DEADLINE_EXCEEDED, NUMERIC_FAILURE, OUT_OF_MEMORY, the load's failure or the signal's reason.
   */
  async generate(request: GenerationRequest, call: GenerationCall): Promise<GenerationOutcome> {
    const { model, phases } = planRequest(request, this.models);
    call.deadline.check("starting the request");
    const { running, claim } = await this.#enter(request, call, { model, phases });
    try {
      return await this.#maker.run(running, claim);
    } finally {
      claim.release();
      this.#leave(running);
    }
  }

  /**
   * What texts mean to a resident model: one vector of length 1 for each, in order. See `TextVectorStage`.
   *
   * @throws ServingError INVALID_REQUEST naming `texts` or one of them, MODEL_NOT_FOUND, NO_WORKER where the model is not
   *   resident, OVERLOADED, DEADLINE_EXCEEDED, or the signal's reason.
   */
  async embedTexts(
    model: string,
    texts: readonly string[],
    { signal, deadline }: Pick<GenerationCall, "signal" | "deadline">,
  ): Promise<readonly Float32Array[]> {
    checkTexts(texts);
    deadline.check("embedding texts");
    const letGo = this.#shelf.hold(model);
    try {
      const work = { model, texts, deadlineAtMs: deadline.atMs };
      const until = AbortSignal.any([signal, this.#stop.signal]);
      return await this.#threads.textVectors.run(`texts-${randomUUID()}`, work, { signal: until });
    } finally {
      letGo();
    }
  }

  get state(): PipelineState {
    const requestsInFlight = this.#inFlight.size;
    return {
      requestsInFlight,
      requestsFree: Math.max(0, this.#limits.queueMax - this.#placesTaken.sent),
      backlogMs: this.#backlog.byClassMs,
      jobsLeftMs: this.#backlog.jobsLeftMs,
      denoiseBusyRatio: this.#busy.at(this.#clock.nowMs()),
      stepTimes: this.#times.toJSON(),
      rowTimes: this.#times.rowTimes,
      places: this.#shelf.places,
      memoryUsedBytes: this.#budget.usedBytes,
      memoryBudgetBytes: this.#budget.budgetBytes,
      stepMs: new Map([...this.models.values()].map(({ bundle }) => [bundle.id, 2 * this.#nativeMsPerRow(bundle)])),
    };
  }

  /** Every model: whether it is in memory, and how many pictures of it its lanes' step batches hold together. */
  get residency(): readonly ModelView[] {
    return this.#shelf.places.map(({ id, status, loadMs }) => {
      const resident = status === "resident" || status === "loading";
      return { id, resident, fits: resident || this.#shelf.hasRoomFor(id), loadMs, sideBySide: this.#sideBySide(id) };
    });
  }

  /** A request waits for memory that pulled work keeps. */
  get crowded(): boolean {
    return this.#waitingForRoom > 0;
  }

  /** Pictures that have step batches ahead of them, of requests that others sent. */
  get requestsDenoising(): number {
    let denoising = 0;
    for (const { call, phases, stepsDone } of this.#inFlight.values())
      if (!call.pulled) denoising += stepsDone.filter((steps) => steps < phases.steps).length;
    return denoising;
  }

  /** Calls `listener` whenever the state has changed; the result takes it back. */
  onChange(listener: (change: PipelineChange) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves when nothing is in flight. */
  async idle(): Promise<void> {
    while (this.#inFlight.size > 0) {
      await new Promise<void>((resolve) => {
        const off = this.onChange(() => {
          off();
          resolve();
        });
      });
    }
  }

  /**
   * Takes every image that is not denoised yet out of the worker, for another to finish, and admits nothing from now
   * on. Each request hears where its images stand and fails with `reason`; images that only want decoding get it.
   */
  handBack(reason: ServingError): void {
    this.#maker.handBack(reason);
  }

  /** Takes every request in flight back, with `reason`, and admits nothing from now on. */
  stop(reason: ServingError): void {
    this.#stop.abort(reason);
  }

  /** Waits for what runs, releases every network and ends the threads. */
  async close(): Promise<void> {
    this.stop(new ServingError("DRAINING", "the worker is stopping"));
    await this.idle();
    await this.#shelf.settled();
    await this.#threads.close();
    await this.#timesFile?.save(this.#times.toJSON(), digests(this.models));
  }

  /** What the denoise thread tells: most often of a U-Net run, what was learned by it and who got on. */
  heardReport(report: DenoiseReport): void {
    if (report.type === "lanes-failed") {
      this.#onProblem(errorOf(report.failure));
      return;
    }
    this.#busy.ran(report.startedAtMs, report.startedAtMs + report.ms, 1 / report.lanes);
    const { model, shape, rows, lanes } = report;
    if (report.refused) {
      this.#budget.ranOutOfMemory(model, shape, rows);
    } else {
      this.#times.observe(report);
      this.#budget.ran(model, shape, rows * lanes);
    }
    this.#timesFile?.saveSometimes(() => this.#times.toJSON(), digests(this.models));
    this.#observer?.ran?.(report, this.#traceOf(report));
    for (const { id, stepsDone, preview, checkpoint } of report.steps) {
      this.#backlog.progress(id, stepsDone);
      const { running, imageIndex } = parseJobId(id, this.#inFlight);
      if (running === undefined) continue;
      running.stepsDone[imageIndex] = stepsDone;
      running.spans.stepped(imageIndex, stepsDone, report);
      this.#noteBegun(running, report);
      running.call.onEvent({
        type: "progress",
        stage: "denoise",
        imageIndex,
        stepsDone: running.totalStepsDone,
        ...(preview && { preview: this.#drawPreview(preview, running.previewMap!) }),
      });
      if (checkpoint !== undefined) this.#maker.tellCheckpoint(running, imageIndex, checkpoint);
    }
    this.#changed();
  }

  #traceOf({ steps }: RunReport): string | undefined {
    for (const { id } of steps) {
      const traceId = parseJobId(id, this.#inFlight).running?.call.span?.traceId;
      if (traceId !== undefined) return traceId;
    }
    return undefined;
  }

  #noteBegun(running: Running, { startedAtMs }: RunReport): void {
    if (running.begun) return;
    running.begun = true;
    const { call, order, waitedMs, encodedAtMs } = running;
    const queuedMs = waitedMs + Math.max(0, startedAtMs - encodedAtMs);
    this.#observer?.begun?.(order.priorityClass, queuedMs, call.span?.traceId);
  }

  #drawPreview({ x0, shape }: Prediction, map: PreviewMap): Uint8Array {
    const image = drawPreview(x0, shape, map);
    if (this.#device.kind === "simulated") markImage(image, this.#device.gpu);
    return encodePreview(image);
  }

  /**
   * What is needed before a request can be accepted: its picture is read, so that nothing is accepted on one that cannot
   * be, and there is memory for it. It has its place meanwhile.
   */
  async #enter(request: GenerationRequest, call: GenerationCall, plan: Omit<RunningParts, "picture">) {
    const from = call.pulled ? "pulled" : "sent";
    this.#checkRoom(from);
    this.#entering[from] += 1;
    try {
      const picture = await this.#readInitImage(request);
      if (this.#stop.signal.aborted) throw toServingError(this.#stop.signal.reason);
      const claim = await this.#claim(request, call, demandOf(request, plan.phases));
      try {
        if (call.signal.aborted) throw toServingError(call.signal.reason);
        this.#admitted += 1;
        const running = this.#admit(request, call, { ...plan, picture });
        if (running.resumedAtSteps.length > 0) this.#observer?.moved?.("in", running.resumedAtSteps.length);
        return { running, claim };
      } catch (error) {
        claim.release();
        throw error;
      }
    } finally {
      this.#entering[from] -= 1;
    }
  }

  /** Work that was pulled keeps no model in memory that a request needs the room of: it is let go of, and waited for. */
  async #claim({ model }: GenerationRequest, call: GenerationCall, demand: MemoryDemand): Promise<Claim> {
    const until = Deadline.after(this.#clock, ROOM_WAIT_MS);
    let waits = false;
    try {
      for (;;) {
        try {
          return await this.#shelf.claim(model, demand);
        } catch (error) {
          const inTheWay = [...this.#inFlight.values()].some(
            (each) => each.call.pulled && each.request.model !== model,
          );
          if (call.pulled || !inTheWay || toServingError(error).code !== "OVERLOADED") throw error;
          if (until.passed || call.deadline.passed || call.signal.aborted) throw error;
        }
        if (!waits) this.#waitingForRoom += 1;
        waits = true;
        const changed = this.#nextChange();
        this.#changed();
        await changed;
      }
    } finally {
      if (waits) this.#waitingForRoom -= 1;
    }
  }

  #nextChange(): Promise<void> {
    return new Promise((resolve) => {
      const off = this.onChange(() => {
        off();
        // What changes by what is done now is looked at once.
        setImmediate(resolve);
      });
    });
  }

  /** Undefined where there is no picture, or none is needed: every image goes on from a state. */
  async #readInitImage(request: GenerationRequest): Promise<RgbImage | undefined> {
    const bytes = request.initImage?.bytes;
    return bytes === undefined ? undefined : await readInitImage(bytes, request);
  }

  get #placesTaken(): { readonly sent: number; readonly pulled: number } {
    let pulled = 0;
    for (const { call } of this.#inFlight.values()) if (call.pulled) pulled += 1;
    const { size } = this.#inFlight;
    const entering = this.#entering;
    return { sent: size - pulled - this.#warmingUp + entering.sent, pulled: pulled + entering.pulled };
  }

  #checkRoom(from: "sent" | "pulled"): void {
    const { queueMax, pulledMax = 0 } = this.#limits;
    const most = from === "sent" ? queueMax : pulledMax;
    if (this.#placesTaken[from] < most) return;
    const what = from === "sent" ? "requests" : "requests that were pulled";
    throw new ServingError("OVERLOADED", `${most} ${what} are in flight, which is the most`);
  }

  #admit(request: GenerationRequest, call: GenerationCall, parts: RunningParts): Running {
    if (this.#stop.signal.aborted) throw toServingError(this.#stop.signal.reason);
    if (this.#maker.leaving !== undefined) throw this.#maker.leaving;
    if (this.#inFlight.has(request.id)) {
      throw new ServingError("INVALID_REQUEST", `request_id ${request.id}: a request of this id is in flight`, {
        field: "request_id",
      });
    }
    const running = new Running(request, call, parts);
    this.#inFlight.set(request.id, running);
    const { model, rows, passes } = running.jobWork;
    this.#lastWork.set(model, { shape: passes[0]!.shape, rows });
    for (const [imageIndex, id] of running.jobIds.entries()) {
      this.#backlog.add(id, running.jobWork);
      this.#backlog.progress(id, running.stepsDone[imageIndex]!);
    }
    this.#changed("took-on");
    const stepsTotal = parts.phases.steps * request.numImages;
    call.onEvent({ type: "accepted", backlogMs: this.#backlog.totalMs, stepsTotal });
    return running;
  }

  #leave({ request, jobIds }: Running): void {
    this.#inFlight.delete(request.id);
    for (const id of jobIds) this.#backlog.remove(id);
    this.#changed();
  }

  /** One small picture: what onnxruntime allocates at first use, and the first step time. */
  async #warmUp(model: Model): Promise<void> {
    const { id, manifest, latentChannels } = model.bundle;
    const request: GenerationRequest = {
      id: `warm-up-${id}-${randomUUID()}`,
      model: id,
      prompt: "warm-up",
      negativePrompt: "",
      ...manifest.nativeSize,
      steps: 3, // the first is not learned from, the second is
      guidanceScale: 2,
      sampler: manifest.defaultSampler,
      karras: false,
      seed: 0n,
      numImages: 1,
      encoding: { format: "png", quality: QUALITY_DEFAULT },
    };
    const deadline = Deadline.after(this.#clock, WARM_UP_MAX_MS);
    const call: GenerationCall = { signal: this.#stop.signal, deadline, onEvent: () => {} };
    const phases = planPhases(request, manifest, model.plans.get(request), latentChannels);
    this.#warmingUp += 1;
    try {
      const running = this.#admit(request, call, { model, phases, picture: undefined });
      try {
        await this.#maker.run(running, undefined);
      } finally {
        this.#leave(running);
      }
    } finally {
      this.#warmingUp -= 1;
    }
  }

  /** Of the kind of picture that was last asked for. */
  #sideBySide(id: string): number {
    const { bundle } = this.models.get(id)!;
    const { width, height } = bundle.manifest.nativeSize;
    const native = { channels: bundle.latentChannels, width: width / 8, height: height / 8 };
    const { shape, rows } = this.#lastWork.get(id) ?? { shape: native, rows: 2 };
    const { stepBatchMax } = this.#limits;
    const narrow = narrowLanesOf(this.#device);
    const size = batchSize({
      rows: Array.from({ length: stepBatchMax }, () => rows),
      equals: stepBatchMax,
      runMs: (of) => this.#times.runMs(id, shape, narrow > 0 ? 1 : 0, of),
      narrow: narrow > 0,
      jobsMax: stepBatchMax,
      rowsMax: Infinity,
    });
    return Math.max(1, narrow) * size;
  }

  #nativeMsPerRow({ id, manifest, latentChannels }: Model["bundle"]): number {
    const { width, height } = manifest.nativeSize;
    return this.#times.msPerRow(id, { channels: latentChannels, width: width / 8, height: height / 8 });
  }

  /** The denoise thread sizes its batches by what is free. */
  #tellRooms(): void {
    for (const { id, status } of this.#shelf.places) {
      if (status === "on-disk" || status === "unloading") {
        this.#rooms.delete(id);
        continue;
      }
      const room = this.#budget.stepRoom(id);
      const told = this.#rooms.get(id);
      if (told !== undefined && sameRoom(told, room)) continue;
      this.#rooms.set(id, room);
      this.#threads.denoise.tell({ model: id, room });
    }
  }

  #changed(change: PipelineChange = "went-on"): void {
    this.#tellRooms();
    for (const listener of [...this.#listeners]) listener(change);
  }
}

const TEXTS_MAX = 64;

function checkTexts(texts: readonly string[]): void {
  if (texts.length === 0 || texts.length > TEXTS_MAX) {
    throw new ServingError("INVALID_REQUEST", `texts: ${texts.length} came; 1 to ${TEXTS_MAX} are taken`, {
      field: "texts",
    });
  }
  for (const [i, text] of texts.entries()) checkPromptText(text, { field: `texts[${i}]`, emptyAllowed: true });
}

/** All of a start; each load has a deadline of its own. */
const PRELOAD_MAX_MS = 2 * 60 * 60_000;
/** A slow device may compile the networks at first use. */
const WARM_UP_MAX_MS = 10 * 60_000;
const BUSY_WINDOW_MS = 10_000;
/** Pulled work is let go of at its next step. */
const ROOM_WAIT_MS = 10_000;
/** As in the configuration. */
const AGEING_MS_DEFAULT = 2000;

/** Times learned on one device say nothing of another. */
function timesKey(device: DeviceSpec): string {
  return device.kind === "onnx" ? `${deviceName(device)} ${device.threads}` : deviceName(device);
}

function digests(models: ReadonlyMap<string, Model>): ReadonlyMap<string, string> {
  return new Map([...models].map(([id, { bundle }]) => [id, bundle.digest]));
}
