import {
  CacheMode,
  CacheOutcome,
  type CreateGenerationRequest,
  type GenerationEventSchema,
  type GenerationStateSchema,
  GenerationStatus,
  ImageFormat,
  ModelStatus,
  type OfferedModelSchema,
  PriorityClass,
  type ReceiptSchema,
  Sampler,
  Stage,
} from "@atelier/proto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { GenerationRecord, GenerationResult } from "../background/generation-record.ts";
import type { CatalogModel } from "../catalog.ts";
import type { CacheOutcome as CacheOutcomeName } from "../generations/ports.ts";
import type { GenerationReceipt, Preview, StageName, StageProgress } from "../image-request.ts";
import { samplerFromWire, samplerToWire } from "../samplers.ts";

type EventInit = NonNullable<MessageInitShape<typeof GenerationEventSchema>["event"]>;

/**
 * The request as a body of POST /v1/generations, so that both have the same defaults, limits and refusals. What is set to
 * a value that this gateway does not know is passed on as that number, to be refused by name.
 */
export function bodyFromWire(request: CreateGenerationRequest): Record<string, unknown> {
  const body = {
    prompt: request.prompt,
    negative_prompt: request.negativePrompt,
    model: request.model,
    width: request.width,
    height: request.height,
    steps: request.steps,
    guidance_scale: request.guidanceScale,
    sampler:
      request.sampler === Sampler.UNSPECIFIED ? undefined : (samplerFromWire(request.sampler) ?? request.sampler),
    seed: request.seed === undefined ? undefined : Number(request.seed),
    num_images: request.numImages,
    loras: request.loras.map(({ name, weight }) => ({ name, ...(weight !== undefined && { weight }) })),
    format: request.format === ImageFormat.UNSPECIFIED ? undefined : (FORMATS[request.format] ?? request.format),
    quality: request.quality,
    cache: request.cache === CacheMode.UNSPECIFIED ? undefined : (CACHE_MODES[request.cache] ?? request.cache),
    priority:
      request.priority === PriorityClass.UNSPECIFIED ? undefined : (PRIORITIES[request.priority] ?? request.priority),
    init_image: request.initImage && Buffer.from(request.initImage).toString("base64"),
    strength: request.strength,
    preview_every: request.previewEvery,
  };
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));
}

export function progressToWire({ stage, imageIndex, stepsDone, stepsTotal }: StageProgress): EventInit {
  return { case: "progress", value: { stage: STAGES[stage], imageIndex, stepsDone, stepsTotal } };
}

export function previewToWire({ imageIndex, stepsDone, stepsTotal, data }: Preview): EventInit {
  return { case: "preview", value: { imageIndex, stepsDone, stepsTotal, data } };
}

export function completedToWire(id: string, { receipt, outcome }: Pick<GenerationResult, "receipt" | "outcome">) {
  return { id, receipt: receiptToWire(receipt), cache: OUTCOMES[outcome], workerIds: [...receipt.workerIds] };
}

export function stateToWire(record: GenerationRecord): MessageInitShape<typeof GenerationStateSchema> {
  const { id, status, createdAtMs, expiresAtMs, model, seed, progress, result, error } = record;
  return {
    id,
    status: STATUSES[status],
    createdAtMs: BigInt(Math.floor(createdAtMs)),
    expiresAtMs: BigInt(Math.floor(expiresAtMs)),
    ...(model !== undefined && { model }),
    ...(seed !== undefined && { seed: BigInt(seed) }),
    ...(progress && { progress: { ...progress, stage: STAGES[progress.stage] } }),
    ...(result && { completed: completedToWire(id, result) }),
    ...(error && { errorCode: error.code, errorMessage: error.message }),
  };
}

export function modelToWire(model: CatalogModel): MessageInitShape<typeof OfferedModelSchema> {
  const { id, name, digest, family, license, limits, defaults, stepMs, twoPasses, place, workersReady } = model;
  return {
    model: {
      id,
      name,
      digest,
      family,
      license,
      limits: { ...limits, pixelsMax: BigInt(limits.pixelsMax) },
      defaults: { ...defaults, sampler: samplerToWire(defaults.sampler) },
      stepMs,
      ...(twoPasses && { twoPasses: { ...twoPasses, abovePixels: BigInt(twoPasses.abovePixels) } }),
    },
    place: {
      id,
      status: PLACES[place.status],
      progress: place.progress,
      weightsBytes: BigInt(place.weightsBytes),
      loadMs: place.loadMs,
    },
    workersReady,
  };
}

function receiptToWire(receipt: GenerationReceipt): MessageInitShape<typeof ReceiptSchema> {
  return {
    parameters: {
      model: receipt.model,
      prompt: receipt.prompt,
      negativePrompt: receipt.negativePrompt,
      width: receipt.width,
      height: receipt.height,
      steps: receipt.steps,
      guidanceScale: receipt.guidanceScale,
      sampler: samplerToWire(receipt.sampler),
      seed: BigInt(receipt.seed),
      numImages: receipt.numImages,
      karrasSigmas: receipt.karrasSigmas,
      strength: receipt.strength ?? 0,
      initImageDigest: receipt.initImageDigest ?? "",
    },
    modelDigest: receipt.modelDigest,
    workerId: receipt.workerId,
    device: receipt.device,
    simulated: receipt.simulated,
    ...(receipt.hiresFix && { hiresFix: receipt.hiresFix }),
    times: receipt.times,
    promptChunks: receipt.promptChunks,
    embeddingsCached: receipt.embeddingsCached,
    preemptions: receipt.preemptions,
    resumedAtSteps: [...receipt.resumedAtSteps],
    batchDifference: receipt.batchDifference,
    tiledDecode: receipt.tiledDecode,
    reusedSteps: receipt.reusedSteps,
    deviceMs: receipt.deviceMs ?? 0,
  };
}

const FORMATS: Partial<Record<ImageFormat, string>> = {
  [ImageFormat.PNG]: "png",
  [ImageFormat.JPEG]: "jpeg",
  [ImageFormat.WEBP]: "webp",
};

const CACHE_MODES: Partial<Record<CacheMode, string>> = {
  [CacheMode.DEFAULT]: "default",
  [CacheMode.REFRESH]: "refresh",
  [CacheMode.OFF]: "off",
  [CacheMode.APPROXIMATE]: "approximate",
};

const PRIORITIES: Partial<Record<PriorityClass, string>> = {
  [PriorityClass.INTERACTIVE]: "interactive",
  [PriorityClass.STANDARD]: "standard",
  [PriorityClass.BULK]: "bulk",
};

const STAGES: Record<StageName, Stage> = {
  text_encode: Stage.TEXT_ENCODE,
  denoise: Stage.DENOISE,
  image_decode: Stage.IMAGE_DECODE,
};

const OUTCOMES: Record<CacheOutcomeName, CacheOutcome> = {
  hit: CacheOutcome.HIT,
  shared: CacheOutcome.SHARED,
  approximate: CacheOutcome.APPROXIMATE,
  miss: CacheOutcome.MISS,
  bypass: CacheOutcome.BYPASS,
};

const STATUSES: Record<GenerationRecord["status"], GenerationStatus> = {
  queued: GenerationStatus.QUEUED,
  running: GenerationStatus.RUNNING,
  succeeded: GenerationStatus.SUCCEEDED,
  failed: GenerationStatus.FAILED,
  cancelled: GenerationStatus.CANCELLED,
};

const PLACES: Record<CatalogModel["place"]["status"], ModelStatus> = {
  resident: ModelStatus.RESIDENT,
  loading: ModelStatus.LOADING,
  on_disk: ModelStatus.ON_DISK,
};
