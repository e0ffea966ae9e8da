import { randomUUID } from "node:crypto";
import { type Clock, Deadline, ServingError, systemClock, toServingError } from "@atelier/core";
import { Backlog } from "./backlog.ts";
import { BusyRatio } from "./busy-ratio.ts";
import { checkMovedImage } from "./denoise-state/check-moved-image.ts";
import type { MovedImage } from "./denoise-state/denoise-state.ts";
import { type DeviceSpec, decoderSessions, deviceName, narrowLanesOf } from "./device/device.ts";
import { markImage } from "./device/simulated/mark.ts";
import { totalBytes } from "./memory/file-bytes.ts";
import { MemoryBudget, type MemoryDemand } from "./memory/memory-budget.ts";
import { cpuBudgetBytes, memoryOf } from "./memory/model-memory.ts";
import { type StepRoom, sameRoom } from "./memory/step-room.ts";
import { ModelLoader } from "./model-loader.ts";
import { type Claim, type ModelPlace, ModelShelf } from "./model-shelf.ts";
import { allOf, type Model, readModels } from "./models.ts";
import { type HiresFix, type Phases, planPhases, stepsDoneAt } from "./phases.ts";
import { checkRequest, type GenerationRequest } from "./request.ts";
import type { Conditioning, JobSnapshot, Prediction, StartImage } from "./stages/denoise-job.ts";
import { type EncodedImage, QUALITY_DEFAULT, type RgbImage } from "./stages/image-file.ts";
import { readInitImage } from "./stages/init-image.ts";
import { DEFAULT_ORDER, type PriorityClass, type ServiceOrder } from "./stages/order/service-order.ts";
import { drawPreview, encodePreview, type PreviewMap, previewMapOf } from "./stages/preview.ts";
import type { EmbeddingCounts } from "./stages/text-encode.ts";
import { type StepTime, StepTimes } from "./step-times.ts";
import { StepTimesFile } from "./step-times-file.ts";
import type { DenoiseReport, RunReport } from "./threads/denoise.thread.ts";
import { errorOf, failureOf } from "./threads/messages.ts";
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
  /** Hears of every U-Net run and finished stage, for metrics. */
  readonly observer?: PipelineObserver;
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
  /** Images in one U-Net run. */
  readonly stepBatchMax: number;
  /** A class of requests that could run and got no turn for so long gets the next step batch. */
  readonly ageingMs?: number;
  /** Pictures of more pixels are decoded in tiles; absent: of more than 1024 x 1024. */
  readonly decodeTilePixels?: number;
}

export interface PipelineObserver {
  ran(report: RunReport): void;
  stageTook(stage: Stage, ms: number): void;
  /** Where a request's prompts were embedded. */
  embedded(counts: EmbeddingCounts): void;
}

export type Stage = "text_encode" | "denoise" | "image_decode";

/** How a request is made to stop, and where it says how it is getting on. */
export interface GenerationCall {
  /** Its reason, a ServingError, is what the request fails with. */
  readonly signal: AbortSignal;
  readonly deadline: Deadline;
  readonly onEvent: (event: GenerationEvent) => void;
}

export type GenerationEvent =
  | { readonly type: "accepted"; readonly backlogMs: number; readonly stepsTotal: number }
  | {
      readonly type: "progress";
      readonly stage: Stage;
      readonly imageIndex: number;
      readonly stepsDone: number;
      /** A PNG of the image so far, where one was wanted with this step. */
      readonly preview?: Uint8Array;
    }
  /** An image as it stands: to be kept in case this worker is lost, or, before DRAINING, to be finished elsewhere. */
  | { readonly type: "checkpoint"; readonly imageIndex: number; readonly image: MovedImage }
  | { readonly type: "image"; readonly imageIndex: number; readonly seed: bigint; readonly image: EncodedImage };

export interface GenerationOutcome {
  readonly modelDigest: string;
  readonly hiresFix: HiresFix | undefined;
  readonly promptChunks: number;
  /** Whether the VAE decoded in tiles. */
  readonly tiledDecode: boolean;
  /** By how much a prediction may depend on its batch mates; 0: not at all. */
  readonly batchDifference: number;
  /** Both prompts were embedded before: the text encoder did not run. */
  readonly embeddingsCached: boolean;
  /** How often the images gave way to more urgent work, together. */
  readonly preemptions: number;
  readonly times: GenerationTimes;
  /** For each image that came from elsewhere: the step of the whole generation at which it went on here. */
  readonly resumedAtSteps: readonly number[];
}

/** Wall milliseconds from stage to stage; `queueMs` is how much of them passed in waiting for the first two stages. */
export interface GenerationTimes {
  readonly queueMs: number;
  readonly textEncodeMs: number;
  readonly denoiseMs: number;
  readonly imageDecodeMs: number;
}

export interface PipelineState {
  readonly requestsInFlight: number;
  readonly requestsFree: number;
  /** Denoising work accepted and not done, in predicted device milliseconds. */
  readonly backlogMs: Readonly<Record<PriorityClass, number>>;
  /** Share of the last ten seconds in which the denoise lanes ran, 0..1. */
  readonly denoiseBusyRatio: number;
  readonly stepTimes: readonly StepTime[];
  /** Every model, in memory or not. */
  readonly places: readonly ModelPlace[];
  /** As counted: weights and the largest runs so far of what is in memory. */
  readonly memoryUsedBytes: number;
  /** Infinity where it is not known. */
  readonly memoryBudgetBytes: number;
  /** Learned milliseconds of one step of one image with guidance at the model's native size, by model. */
  readonly stepMs: ReadonlyMap<string, number>;
}

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
  readonly #times: StepTimes;
  readonly #timesFile: StepTimesFile | undefined;
  readonly #device: DeviceSpec;
  readonly #busy = new BusyRatio(BUSY_WINDOW_MS);
  readonly #onProblem: (error: ServingError) => void;
  readonly #backlog: Backlog;
  readonly #limits: PipelineLimits;
  readonly #observer: PipelineObserver | undefined;
  readonly #clock: Clock;
  readonly #stop = new AbortController();
  #leaving: ServingError | undefined;
  readonly #left = new AbortController();
  readonly #inFlight = new Map<string, Running>();
  readonly #listeners = new Set<() => void>();
  readonly #budget: MemoryBudget;
  readonly #shelf: ModelShelf;
  /** What the denoise thread was last told, by model. */
  readonly #rooms = new Map<string, StepRoom>();
  /** Requests that are about to be admitted: their picture is being read, or room is made for them. */
  #entering = 0;
  /** Requests admitted so far, warm-ups left out. */
  #admitted = 0;
  #warmingUp = 0;
  #denoising = 0; // images between noise and finished latent

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
    const { model, phases } = this.#plan(request);
    call.deadline.check("starting the request");
    const { running, claim } = await this.#enter(request, call, { model, phases });
    try {
      return await this.#run(running, claim);
    } finally {
      claim.release();
      this.#leave(running);
    }
  }

  get state(): PipelineState {
    const requestsInFlight = this.#inFlight.size;
    return {
      requestsInFlight,
      requestsFree: Math.max(0, this.#limits.queueMax - this.#placesTaken),
      backlogMs: this.#backlog.byClassMs,
      denoiseBusyRatio: this.#busy.at(this.#clock.nowMs()),
      stepTimes: this.#times.toJSON(),
      places: this.#shelf.places,
      memoryUsedBytes: this.#budget.usedBytes,
      memoryBudgetBytes: this.#budget.budgetBytes,
      stepMs: new Map([...this.models.values()].map(({ bundle }) => [bundle.id, 2 * this.#nativeMsPerRow(bundle)])),
    };
  }

  /** Calls `listener` whenever the state has changed; the result takes it back. */
  onChange(listener: () => void): () => void {
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
    this.#leaving ??= reason;
    this.#left.abort(this.#leaving); // those that wait for a model
    this.#threads.denoise.tell({ leave: failureOf(reason) });
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
    this.#observer?.ran(report);
    for (const { id, stepsDone, preview, checkpoint } of report.steps) {
      this.#backlog.progress(id, stepsDone);
      const { running, imageIndex } = parseJobId(id, this.#inFlight);
      if (running === undefined) continue;
      running.stepsDone[imageIndex] = stepsDone;
      running.call.onEvent({
        type: "progress",
        stage: "denoise",
        imageIndex,
        stepsDone: running.totalStepsDone,
        ...(preview && { preview: this.#drawPreview(preview, running.previewMap!) }),
      });
      if (checkpoint !== undefined) this.#tellCheckpoint(running, imageIndex, checkpoint);
    }
    this.#changed();
  }

  #drawPreview({ x0, shape }: Prediction, map: PreviewMap): Uint8Array {
    const image = drawPreview(x0, shape, map);
    if (this.#device.kind === "simulated") markImage(image, this.#device.gpu);
    return encodePreview(image);
  }

  #plan(request: GenerationRequest): { model: Model; phases: Phases } {
    const model = this.models.get(request.model);
    if (model === undefined) {
      const known = [...this.models.keys()].join(", ");
      throw new ServingError("MODEL_NOT_FOUND", `model "${request.model}" is not here; this worker has ${known}`, {
        field: "model",
      });
    }
    checkRequest(request, model.limits);
    checkPreview(request, model);
    checkInitImage(request, model);
    const plan = model.plans.get(request);
    const { width, height, initImage } = request;
    const wish = { width, height, strength: initImage?.strength };
    const phases = planPhases(wish, model.bundle.manifest, plan, model.bundle.latentChannels);
    for (const image of request.resumeFrom?.values() ?? []) {
      checkMovedImage(image, { modelDigest: model.bundle.digest, plan, phases });
    }
    return { model, phases };
  }

  /**
   * What is needed before a request can be accepted: its picture is read, so that nothing is accepted on one that cannot
   * be, and there is memory for it. It has its place meanwhile.
   */
  async #enter(request: GenerationRequest, call: GenerationCall, plan: Omit<RunningParts, "picture">) {
    this.#checkRoom();
    this.#entering += 1;
    try {
      const picture = await this.#readInitImage(request);
      if (this.#stop.signal.aborted) throw toServingError(this.#stop.signal.reason);
      const claim = await this.#shelf.claim(request.model, demandOf(request, plan.phases));
      try {
        if (call.signal.aborted) throw toServingError(call.signal.reason);
        this.#admitted += 1;
        return { running: this.#admit(request, call, { ...plan, picture }), claim };
      } catch (error) {
        claim.release();
        throw error;
      }
    } finally {
      this.#entering -= 1;
    }
  }

  /** Undefined where there is no picture, or none is needed: every image goes on from a state. */
  async #readInitImage(request: GenerationRequest): Promise<RgbImage | undefined> {
    const bytes = request.initImage?.bytes;
    return bytes === undefined ? undefined : await readInitImage(bytes, request);
  }

  get #placesTaken(): number {
    return this.#inFlight.size - this.#warmingUp + this.#entering;
  }

  #checkRoom(): void {
    if (this.#placesTaken < this.#limits.queueMax) return;
    throw new ServingError("OVERLOADED", `${this.#limits.queueMax} requests are in flight, which is the most`);
  }

  #admit(request: GenerationRequest, call: GenerationCall, parts: RunningParts): Running {
    if (this.#stop.signal.aborted) throw toServingError(this.#stop.signal.reason);
    if (this.#leaving !== undefined) throw this.#leaving;
    if (this.#inFlight.has(request.id)) {
      throw new ServingError("INVALID_REQUEST", `request_id ${request.id}: a request of this id is in flight`, {
        field: "request_id",
      });
    }
    const running = new Running(request, call, parts);
    this.#inFlight.set(request.id, running);
    for (const [imageIndex, id] of running.jobIds.entries()) {
      this.#backlog.add(id, running.jobWork);
      this.#backlog.progress(id, running.stepsDone[imageIndex]!);
    }
    this.#changed();
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
        await this.#run(running, undefined);
      } finally {
        this.#leave(running);
      }
    } finally {
      this.#warmingUp -= 1;
    }
  }

  /** A warm-up has no claim: it is part of the load. */
  async #run(running: Running, claim: Claim | undefined): Promise<GenerationOutcome> {
    const { request, call, model, phases } = running;
    const failed = new AbortController(); // one image that fails takes the others of its request with it
    const signal = AbortSignal.any([call.signal, this.#stop.signal, failed.signal]);
    const acceptedAtMs = this.#clock.nowMs();
    await claim
      ?.ready({ signal: AbortSignal.any([signal, this.#left.signal]), deadline: call.deadline })
      .catch((error: unknown) => {
        throw error === this.#leaving ? this.#notBegun(running, error) : error;
      });
    call.onEvent({ type: "progress", stage: "text_encode", imageIndex: 0, stepsDone: 0 });
    const text = await this.#threads.textEncode.run(
      request.id,
      {
        model: request.model,
        prompt: request.prompt,
        negativePrompt: running.guided ? request.negativePrompt : undefined,
        deadlineAtMs: call.deadline.atMs,
      },
      { signal },
    );
    const start = await this.#encodeInitImage(running, signal);
    const encodedAtMs = this.#clock.nowMs();
    this.#observer?.embedded(text.embeddings);
    if (this.#leaving !== undefined) throw this.#notBegun(running, this.#leaving);

    const images = running.jobIds.map((_, imageIndex) =>
      this.#makeImage(running, imageIndex, { conditioning: text.conditioning, start }, signal).catch(
        (error: unknown) => {
          // What leaves says so by itself, and an image that is being decoded meanwhile is worth having.
          if (error !== this.#leaving) failed.abort(error);
          throw error;
        },
      ),
    );
    const made = await Promise.allSettled(images);
    if (failed.signal.aborted) throw toServingError(failed.signal.reason);
    if (this.#leaving !== undefined && made.some(({ status }) => status === "rejected")) throw this.#leaving;
    const done = made.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));

    const startedAtMs = Math.min(...done.map((image) => image.startedAtMs));
    const denoisedAtMs = Math.max(...done.map((image) => image.denoisedAtMs));
    const times = {
      // The threads' clocks may differ by a fraction of a millisecond.
      queueMs: Math.max(0, text.startedAtMs - acceptedAtMs) + Math.max(0, startedAtMs - encodedAtMs),
      textEncodeMs: encodedAtMs - acceptedAtMs,
      denoiseMs: denoisedAtMs - encodedAtMs,
      imageDecodeMs: this.#clock.nowMs() - denoisedAtMs,
    };
    this.#observer?.stageTook("text_encode", times.textEncodeMs);
    this.#observer?.stageTook("denoise", times.denoiseMs);
    this.#observer?.stageTook("image_decode", times.imageDecodeMs);
    return {
      modelDigest: model.bundle.digest,
      hiresFix: phases.hiresFix,
      promptChunks: text.promptChunks,
      tiledDecode: done.some((image) => image.tiled),
      batchDifference: Math.max(...done.map((image) => image.batchDifference)),
      embeddingsCached: text.embeddings.shared + text.embeddings.miss === 0,
      preemptions: done.reduce((sum, image) => sum + image.preemptions, 0),
      times,
      resumedAtSteps: running.resumedAtSteps,
    };
  }

  /** Once for all images of a request: each draws a latent of its own from what comes of it. */
  async #encodeInitImage(running: Running, signal: AbortSignal): Promise<StartImage | undefined> {
    const { request, call, model, phases, picture } = running;
    if (picture === undefined) return undefined;
    const { scalingFactor, shiftFactor = 0 } = model.bundle;
    const work = { model: request.model, picture, shape: phases.shape, scaling: { scalingFactor, shiftFactor } };
    const { atMs } = call.deadline;
    const latents = await this.#threads.imageEncode.run(request.id, { ...work, deadlineAtMs: atMs }, { signal });
    return { latents, firstStep: phases.firstStep };
  }

  async #makeImage(
    running: Running,
    imageIndex: number,
    { conditioning, start }: { conditioning: Conditioning; start: StartImage | undefined },
    signal: AbortSignal,
  ) {
    const { request, call, model, phases } = running;
    const { scalingFactor, shiftFactor = 0 } = model.bundle;
    const id = running.jobIds[imageIndex]!;
    const seed = request.seed + BigInt(imageIndex);
    const deadlineAtMs = call.deadline.atMs;
    const { sampler, steps, karras, guidanceScale } = request;

    const from = request.resumeFrom?.get(imageIndex);
    this.#denoising += 1;
    const denoising = this.#threads.denoise.run(
      id,
      {
        model: request.model,
        plan: { sampler, steps, karras },
        shape: phases.shape,
        start,
        refine: phases.refine,
        conditioning,
        guidanceScale,
        seed,
        deadlineAtMs,
        from: from && { snapshot: from.snapshot, stepsDone: running.stepsDone[imageIndex]! },
        checkpointEverySteps: request.checkpointEverySteps ?? 0,
        previewEverySteps: request.previewEverySteps ?? 0,
        order: running.order,
      },
      { signal },
    );
    const denoised = await denoising.finally(() => {
      this.#denoising -= 1;
    });
    if ("left" in denoised) {
      this.#tellCheckpoint(running, imageIndex, denoised.left);
      throw this.#leaving!;
    }
    const { latent, startedAtMs, batchDifference, preemptions } = denoised;
    const denoisedAtMs = this.#clock.nowMs();
    call.onEvent({ type: "progress", stage: "image_decode", imageIndex, stepsDone: running.totalStepsDone });

    try {
      const { image, tiled } = await this.#threads.imageDecode.run(
        id,
        {
          model: request.model,
          latent,
          shape: phases.refine?.shape ?? phases.shape,
          scaling: { scalingFactor, shiftFactor },
          tile: model.bundle.decodeTile,
          wide: this.#denoising === 0,
          encoding: request.encoding,
          deadlineAtMs,
        },
        { signal, transfer: [latent.buffer] },
      );
      if (signal.aborted) throw toServingError(signal.reason);
      call.onEvent({ type: "image", imageIndex, seed, image });
      return { startedAtMs, denoisedAtMs, batchDifference, preemptions, tiled };
    } finally {
      this.#threads.denoise.tell({ taken: 1 });
    }
  }

  /** Its images stand where they stood when they came: those from elsewhere at their states, the others at noise. */
  #notBegun({ request, call }: Running, reason: unknown): unknown {
    for (const [imageIndex, image] of request.resumeFrom ?? []) call.onEvent({ type: "checkpoint", imageIndex, image });
    return reason;
  }

  #tellCheckpoint({ call, model, phases }: Running, imageIndex: number, snapshot: JobSnapshot): void {
    const { refine } = phases;
    const image: MovedImage = {
      modelDigest: model.bundle.digest,
      shape: snapshot.phase === 1 && refine !== undefined ? refine.shape : phases.shape,
      refine,
      snapshot,
    };
    call.onEvent({ type: "checkpoint", imageIndex, image });
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

  #changed(): void {
    this.#tellRooms();
    for (const listener of [...this.#listeners]) listener();
  }
}

/** A step of one image at its largest shape, and what all images keep meanwhile. */
function demandOf({ guidanceScale, numImages }: GenerationRequest, { shape, refine }: Phases): MemoryDemand {
  return { shape: refine?.shape ?? shape, rows: guidanceScale > 1 ? 2 : 1, images: numImages };
}

/** @throws ServingError INVALID_REQUEST when previews are asked for that nothing can draw. */
function checkPreview({ previewEverySteps = 0 }: GenerationRequest, { bundle }: Model): void {
  if (previewEverySteps === 0 || previewMapOf(bundle) !== undefined) return;
  const latents = `latents of ${bundle.latentChannels} channels of the family "${bundle.manifest.family}"`;
  const message = `preview_every_steps ${previewEverySteps}: ${bundle.id} has no previewMatrix, and none is published for ${latents}`;
  throw new ServingError("INVALID_REQUEST", message, { field: "preview_every_steps" });
}

/** @throws ServingError INVALID_REQUEST when images are to start from a picture and the model cannot see pictures. */
function checkInitImage({ initImage, resumeFrom, numImages }: GenerationRequest, { bundle }: Model): void {
  if (initImage === undefined) return;
  if (initImage.bytes === undefined) {
    if (resumeFrom?.size === numImages) return; // what they began from is behind them
    throw new ServingError("INVALID_REQUEST", "init_image is missing", { field: "init_image" });
  }
  if (bundle.vaeEncoderPath !== undefined) return;
  const message = `init_image: ${bundle.id} has no VAE encoder (vae_encoder/model.onnx), so its images start from words alone`;
  throw new ServingError("INVALID_REQUEST", message, { field: "init_image" });
}

/** All of a start; each load has a deadline of its own. */
const PRELOAD_MAX_MS = 2 * 60 * 60_000;
/** A slow device may compile the networks at first use. */
const WARM_UP_MAX_MS = 10 * 60_000;
const BUSY_WINDOW_MS = 10_000;
/** As in the configuration. */
const AGEING_MS_DEFAULT = 2000;

interface RunningParts {
  readonly model: Model;
  readonly phases: Phases;
  readonly picture: RgbImage | undefined;
}

/** A request in flight. */
class Running {
  readonly request: GenerationRequest;
  readonly call: GenerationCall;
  readonly model: Model;
  readonly phases: Phases;
  /** What image to image starts from. */
  readonly picture: RgbImage | undefined;
  readonly jobIds: readonly string[];
  readonly previewMap: PreviewMap | undefined;
  /** By image. */
  readonly stepsDone: number[];
  readonly resumedAtSteps: readonly number[];

  constructor(request: GenerationRequest, call: GenerationCall, { model, phases, picture }: RunningParts) {
    this.request = request;
    this.call = call;
    this.model = model;
    this.phases = phases;
    this.picture = picture;
    this.previewMap = previewMapOf(model.bundle);
    this.jobIds = Array.from({ length: request.numImages }, (_, i) => `${request.id}#${i}`);
    const plan = model.plans.get(request);
    this.stepsDone = this.jobIds.map((_, i) => {
      const from = request.resumeFrom?.get(i);
      return from === undefined ? 0 : stepsDoneAt(from.snapshot, phases, plan);
    });
    this.resumedAtSteps = [...(request.resumeFrom?.keys() ?? [])].map((i) => this.stepsDone[i]!);
  }

  /** At a scale of 1 and below guidance has nothing to add, and a step takes one row instead of two. */
  get guided(): boolean {
    return this.request.guidanceScale > 1;
  }

  get order(): ServiceOrder {
    return this.request.order ?? DEFAULT_ORDER;
  }

  get totalStepsDone(): number {
    return this.stepsDone.reduce((sum, steps) => sum + steps, 0);
  }

  get jobWork() {
    const { shape, refine, steps } = this.phases;
    const refineSteps = refine === undefined ? 0 : steps - this.request.steps;
    const passes = [
      { shape, steps: steps - refineSteps },
      ...(refine === undefined ? [] : [{ shape: refine.shape, steps: refineSteps }]),
    ];
    return { model: this.request.model, priorityClass: this.order.priorityClass, rows: this.guided ? 2 : 1, passes };
  }
}

/** Times learned on one device say nothing of another. */
function timesKey(device: DeviceSpec): string {
  return device.kind === "onnx" ? `${deviceName(device)} ${device.threads}` : deviceName(device);
}

function digests(models: ReadonlyMap<string, Model>): ReadonlyMap<string, string> {
  return new Map([...models].map(([id, { bundle }]) => [id, bundle.digest]));
}

function parseJobId(id: string, inFlight: ReadonlyMap<string, Running>) {
  const at = id.lastIndexOf("#");
  return { running: inFlight.get(id.slice(0, at)), imageIndex: Number(id.slice(at + 1)) };
}
