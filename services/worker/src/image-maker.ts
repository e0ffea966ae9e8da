import { type Clock, type ServingError, toServingError } from "@atelier/core";
import type { MovedImage } from "./denoise-state/denoise-state.ts";
import type { GenerationOutcome } from "./generation.ts";
import type { Claim } from "./model-shelf.ts";
import type { PipelineObserver } from "./pipeline.ts";
import type { Running } from "./running.ts";
import type { Conditioning, JobSnapshot, StartImage, StartLatent } from "./stages/denoise-job.ts";
import { failureOf } from "./threads/messages.ts";
import type { StageThreads } from "./threads/stage-threads.ts";

/** A model that is at hand is no wait worth a span. */
const MODEL_WAIT_SHOWN_MS = 10;

/** Takes requests through the stages: text encode (and image encode), denoise, image decode. */
export class ImageMaker {
  readonly #threads: StageThreads;
  readonly #clock: Clock;
  readonly #observer: Partial<PipelineObserver> | undefined;
  readonly #stopped: AbortSignal;
  #leaving: ServingError | undefined;
  readonly #left = new AbortController();
  #denoising = 0; // images between noise and finished latent

  /** `stopped` takes every request back, with its reason. */
  constructor(parts: {
    threads: StageThreads;
    clock: Clock;
    observer: Partial<PipelineObserver> | undefined;
    stopped: AbortSignal;
  }) {
    this.#threads = parts.threads;
    this.#clock = parts.clock;
    this.#observer = parts.observer;
    this.#stopped = parts.stopped;
  }

  /** Why nothing new is begun: the images in flight are on their way to another worker. */
  get leaving(): ServingError | undefined {
    return this.#leaving;
  }

  /** As `Pipeline.handBack`. */
  handBack(reason: ServingError): void {
    this.#leaving ??= reason;
    this.#left.abort(this.#leaving); // those that wait for a model
    this.#threads.denoise.tell({ leave: failureOf(reason) });
  }

  /**
   * All images of a request, from prompt to files. Rejects once every stage has let go of it. `claim` is what it waits
   * for first, its model; a warm-up has none, since it is part of the load.
   *
   * @throws ServingError as `Pipeline.generate` after "accepted".
   */
  async run(running: Running, claim: Claim | undefined): Promise<GenerationOutcome> {
    try {
      return await this.#run(running, claim);
    } catch (error) {
      running.spans.close(error);
      throw error;
    }
  }

  async #run(running: Running, claim: Claim | undefined): Promise<GenerationOutcome> {
    const { request, call, model, phases, spans } = running;
    const failed = new AbortController(); // one image that fails takes the others of its request with it
    const signal = AbortSignal.any([call.signal, this.#stopped, failed.signal]);
    const observer = claim === undefined ? undefined : this.#observer;
    running.begun = claim === undefined;
    const acceptedAtMs = this.#clock.nowMs();
    await claim
      ?.ready({ signal: AbortSignal.any([signal, this.#left.signal]), deadline: call.deadline })
      .catch((error: unknown) => {
        throw error === this.#leaving ? this.#notBegun(running, error) : error;
      });
    const loadedAtMs = this.#clock.nowMs();
    if (loadedAtMs - acceptedAtMs >= MODEL_WAIT_SHOWN_MS)
      spans.stage("model_wait", { startMs: acceptedAtMs, endMs: loadedAtMs });
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
    spans.stage(
      "text_encode",
      { startMs: loadedAtMs, endMs: this.#clock.nowMs() },
      {
        "atelier.model": request.model,
        "atelier.queue_wait_ms": Math.max(0, text.startedAtMs - loadedAtMs),
        "atelier.prompt.chunks": text.promptChunks,
        "atelier.embeddings.hit": text.embeddings.hit,
        "atelier.embeddings.miss": text.embeddings.miss,
      },
    );
    running.waitedMs = Math.max(0, text.startedAtMs - acceptedAtMs); // the threads' clocks may differ by a fraction of a millisecond
    const start = startLatentOf(running) ?? (await this.#encodeInitImage(running, signal));
    const encodedAtMs = this.#clock.nowMs();
    running.encodedAtMs = encodedAtMs;
    observer?.embedded?.(text.embeddings);
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
      queueMs: running.waitedMs + Math.max(0, startedAtMs - encodedAtMs),
      textEncodeMs: encodedAtMs - acceptedAtMs,
      denoiseMs: denoisedAtMs - encodedAtMs,
      imageDecodeMs: this.#clock.nowMs() - denoisedAtMs,
    };
    observer?.stageTook?.("text_encode", times.textEncodeMs, call.span?.traceId);
    observer?.stageTook?.("denoise", times.denoiseMs, call.span?.traceId);
    observer?.stageTook?.("image_decode", times.imageDecodeMs, call.span?.traceId);
    return {
      modelDigest: model.bundle.digest,
      hiresFix: phases.hiresFix,
      promptChunks: text.promptChunks,
      tiledDecode: done.some((image) => image.tiled),
      batchDifference: Math.max(...done.map((image) => image.batchDifference)),
      embeddingsCached: text.embeddings.shared + text.embeddings.miss === 0,
      preemptions: done.reduce((sum, image) => sum + image.preemptions, 0),
      deviceMs: done.reduce((sum, image) => sum + image.deviceMs, 0),
      times,
      resumedAtSteps: running.resumedAtSteps,
      reused: request.startLatent && { steps: request.startLatent.stepIndex, digest: request.startLatent.digest },
    };
  }

  /** Once for all images of a request: each draws a latent of its own from what comes of it. */
  async #encodeInitImage(running: Running, signal: AbortSignal): Promise<StartImage | undefined> {
    const { request, call, model, phases, picture } = running;
    if (picture === undefined) return undefined;
    const { scalingFactor, shiftFactor = 0 } = model.bundle;
    const work = { model: request.model, picture, shape: phases.shape, scaling: { scalingFactor, shiftFactor } };
    const { atMs } = call.deadline;
    const startMs = this.#clock.nowMs();
    const latents = await this.#threads.imageEncode.run(request.id, { ...work, deadlineAtMs: atMs }, { signal });
    running.spans.stage("image_encode", { startMs, endMs: this.#clock.nowMs() });
    return { latents, firstStep: phases.firstStep };
  }

  async #makeImage(
    running: Running,
    imageIndex: number,
    { conditioning, start }: { conditioning: Conditioning; start: StartImage | StartLatent | undefined },
    signal: AbortSignal,
  ) {
    const { request, call, model, phases, spans } = running;
    const { scalingFactor, shiftFactor = 0 } = model.bundle;
    const id = running.jobIds[imageIndex]!;
    const seed = request.seed + BigInt(imageIndex);
    const deadlineAtMs = call.deadline.atMs;
    const { sampler, steps, karras, guidanceScale } = request;

    const from = request.resumeFrom?.get(imageIndex);
    this.#denoising += 1;
    spans.denoiseBegins(imageIndex, this.#clock.nowMs(), {
      "atelier.model": request.model,
      "atelier.sampler": sampler,
      "atelier.steps": phases.steps,
      "atelier.steps.resumed_at": from && running.stepsDone[imageIndex],
      "atelier.class": running.order.priorityClass,
    });
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
      spans.denoiseEnds(imageIndex, { "atelier.handed_back": true });
      this.tellCheckpoint(running, imageIndex, denoised.left);
      this.#observer?.moved?.("out", 1);
      throw this.#leaving!;
    }
    const { latent, startedAtMs, batchDifference, preemptions, deviceMs } = denoised;
    const denoisedAtMs = this.#clock.nowMs();
    spans.denoiseEnds(imageIndex, { "atelier.preemptions": preemptions, "atelier.device_ms": deviceMs });
    const decoding = spans.imageDecode(imageIndex);
    call.onEvent({ type: "progress", stage: "image_decode", imageIndex, stepsDone: running.totalStepsDone });

    try {
      const {
        image,
        tiled,
        deviceMs: decodeMs,
      } = await this.#threads.imageDecode.run(
        id,
        {
          model: request.model,
          latent,
          shape: phases.refine?.shape ?? phases.shape,
          scaling: { scalingFactor, shiftFactor },
          tile: model.bundle.decodeTile,
          wide: this.#denoising === 0,
          encoding: request.encoding,
          priorityClass: running.order.priorityClass,
          deadlineAtMs,
        },
        { signal, transfer: [latent.buffer] },
      );
      decoding.set({ "atelier.device_ms": decodeMs, "atelier.decode.tiled": tiled });
      if (signal.aborted) throw toServingError(signal.reason);
      call.onEvent({ type: "image", imageIndex, seed, image });
      return { startedAtMs, denoisedAtMs, batchDifference, preemptions, tiled, deviceMs: deviceMs + decodeMs };
    } catch (error) {
      decoding.fail(error);
      throw error;
    } finally {
      decoding.end();
      this.#threads.denoise.tell({ taken: 1 });
    }
  }

  /** Its images stand where they stood when they came: those from elsewhere at their states, the others at noise. */
  #notBegun({ request, call }: Running, reason: unknown): unknown {
    for (const [imageIndex, image] of request.resumeFrom ?? []) call.onEvent({ type: "checkpoint", imageIndex, image });
    this.#observer?.moved?.("out", request.numImages);
    return reason;
  }

  /** Tells the caller where an image stands. */
  tellCheckpoint({ call, model, phases }: Running, imageIndex: number, snapshot: JobSnapshot): void {
    const { refine } = phases;
    const image: MovedImage = {
      modelDigest: model.bundle.digest,
      shape: snapshot.phase === 1 && refine !== undefined ? refine.shape : phases.shape,
      refine,
      snapshot,
    };
    this.#observer?.checkpointed?.(bytesOf(snapshot));
    call.onEvent({ type: "checkpoint", imageIndex, image });
  }
}

function bytesOf({ latent, history }: JobSnapshot): number {
  return history.reduce((sum, array) => sum + array.byteLength, latent.byteLength);
}

function startLatentOf({ request: { startLatent } }: Running): StartLatent | undefined {
  return startLatent && { latent: startLatent.latent, firstStep: startLatent.stepIndex };
}
