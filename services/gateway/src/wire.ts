import { ServingError } from "@atelier/core";
import {
  type DenoiseState,
  type GeneratedImage,
  type GenerateRequestSchema,
  ImageFormat,
  PriorityClass,
  type Receipt,
  Stage,
} from "@atelier/proto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { PriorityClass as PriorityClassName } from "./caller.ts";
import type { PassingLatent, ServiceOrder } from "./generations/ports.ts";
import type {
  GeneratedPicture,
  GenerationReceipt,
  HiresFixReceipt,
  ImageFormatName,
  ImageRequest,
  StageName,
  StartLatent,
} from "./image-request.ts";
import { samplerFromWire, samplerToWire } from "./samplers.ts";

/** What a call asks for beside the request itself. */
export interface CallOptions {
  /** Unique among the calls in flight, which a caller's own id is not. */
  readonly callId: string;
  readonly order: ServiceOrder;
  /** Which of the request's pictures. */
  readonly slice: { readonly first: number; readonly count: number };
  /** Steps between checkpoints; 0: none. */
  readonly checkpointEvery: number;
  /** Where some of the pictures stand already. */
  readonly resumeFrom: readonly DenoiseState[];
}

/** The request, or a slice of it, as a worker takes it. */
export function requestToWire(
  request: ImageRequest,
  { callId, order, slice, checkpointEvery, resumeFrom }: CallOptions,
): MessageInitShape<typeof GenerateRequestSchema> {
  return {
    requestId: callId,
    parameters: {
      model: request.model,
      prompt: request.prompt,
      negativePrompt: request.negativePrompt,
      width: request.width,
      height: request.height,
      steps: request.steps,
      guidanceScale: request.guidanceScale,
      sampler: samplerToWire(request.sampler),
      karrasSigmas: request.karrasSigmas ?? false,
      seed: BigInt(request.seed) + BigInt(slice.first),
      numImages: slice.count,
      strength: request.initPicture?.strength ?? 0,
    },
    format: FORMATS[request.format],
    quality: request.quality ?? 0,
    initImage: request.initPicture?.bytes ?? new Uint8Array(),
    resumeFrom: [...resumeFrom],
    ...(request.startLatent && { startLatent: startLatentToWire(request.startLatent) }),
    checkpointEverySteps: checkpointEvery,
    previewEverySteps: request.previewEvery ?? 0,
    order: { priorityClass: PRIORITIES[order.priority], tenant: order.tenant, tenantWeight: order.weight ?? 1 },
  };
}

function startLatentToWire({ channels, height, width, latent, stepIndex }: StartLatent) {
  return { shape: { channels, height, width }, latent, stepIndex };
}

export function pictureFromWire(image: GeneratedImage): GeneratedPicture {
  const { data, mediaType, width, height, seed } = image;
  return { data, mediaType, width, height, seed: Number(seed) };
}

/** Undefined for a stage that a newer worker has and this gateway does not know. */
export function stageFromWire(stage: Stage): StageName | undefined {
  return STAGES[stage];
}

/** `imageIndex` is the picture's number in the caller's request. */
export function passingFromWire(state: DenoiseState, imageIndex: number): PassingLatent {
  const { modelDigest, phase, stepIndex, latent, shape } = state;
  const { channels, height, width } = shape ?? { channels: 0, height: 0, width: 0 };
  return { imageIndex, modelDigest, phase, stepIndex, channels, height, width, latent };
}

/** @throws ServingError INTERNAL when the receipt is incomplete: it would not be enough to make the picture again. */
export function receiptFromWire(receipt: Receipt | undefined): GenerationReceipt {
  const parameters = receipt?.parameters;
  const sampler = parameters && samplerFromWire(parameters.sampler);
  if (receipt === undefined || parameters === undefined || sampler === undefined) {
    throw new ServingError("INTERNAL", "the worker finished without a complete receipt");
  }
  const { times } = receipt;
  return {
    model: parameters.model,
    modelDigest: receipt.modelDigest,
    workerId: receipt.workerId,
    device: receipt.device,
    simulated: receipt.simulated,
    prompt: parameters.prompt,
    negativePrompt: parameters.negativePrompt,
    width: parameters.width,
    height: parameters.height,
    steps: parameters.steps,
    guidanceScale: parameters.guidanceScale,
    sampler,
    karrasSigmas: parameters.karrasSigmas,
    seed: Number(parameters.seed),
    numImages: parameters.numImages,
    promptChunks: receipt.promptChunks,
    hiresFix: hiresFixFromWire(receipt),
    strength: parameters.strength === 0 ? undefined : parameters.strength,
    initImageDigest: parameters.initImageDigest === "" ? undefined : parameters.initImageDigest,
    tiledDecode: receipt.tiledDecode,
    embeddingsCached: receipt.embeddingsCached,
    preemptions: receipt.preemptions,
    batchDifference: receipt.batchDifference,
    attempts: 1,
    workerIds: [receipt.workerId],
    resumedAtSteps: receipt.resumedAtSteps,
    reusedSteps: receipt.reusedSteps,
    deviceMs: receipt.deviceMs === 0 ? undefined : receipt.deviceMs,
    times: {
      queueMs: times?.queueMs ?? 0,
      textEncodeMs: times?.textEncodeMs ?? 0,
      denoiseMs: times?.denoiseMs ?? 0,
      imageDecodeMs: times?.imageDecodeMs ?? 0,
    },
  };
}

function hiresFixFromWire({ hiresFix }: Receipt): HiresFixReceipt | undefined {
  if (hiresFix === undefined) return undefined;
  const { nativeWidth, nativeHeight, strength, upscale } = hiresFix;
  return { nativeWidth, nativeHeight, strength, upscale };
}

const PRIORITIES: Record<PriorityClassName, PriorityClass> = {
  interactive: PriorityClass.INTERACTIVE,
  standard: PriorityClass.STANDARD,
  bulk: PriorityClass.BULK,
};

const STAGES: Partial<Record<Stage, StageName>> = {
  [Stage.TEXT_ENCODE]: "text_encode",
  [Stage.DENOISE]: "denoise",
  [Stage.IMAGE_DECODE]: "image_decode",
};

const FORMATS: Record<ImageFormatName, ImageFormat> = {
  png: ImageFormat.PNG,
  jpeg: ImageFormat.JPEG,
  webp: ImageFormat.WEBP,
};
