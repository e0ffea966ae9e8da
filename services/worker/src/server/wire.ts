import { type Clock, ServingError, sha256, systemClock } from "@atelier/core";
import type { SamplerName } from "@atelier/diffusion";
import {
  type DenoiseState,
  type GenerateRequest,
  type GenerateResponse,
  GenerateResponseSchema,
  type GenerationParameters,
  ImageFormat,
  type Receipt,
  ReceiptSchema,
  Sampler,
  PriorityClass as WireClass,
  Stage as WireStage,
  type StartLatent as WireStartLatent,
} from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { refusedStart } from "../check-start-latent.ts";
import { type MovedImage, readDenoiseState, writeDenoiseState } from "../denoise-state/denoise-state.ts";
import type { GenerationEvent, GenerationOutcome, Stage } from "../generation.ts";
import type { GenerationRequest, GivenLatent, InitImage } from "../request.ts";
import { type ImageFormat as ImageFormatName, QUALITY_DEFAULT } from "../stages/image-file.ts";
import { DEFAULT_ORDER, type PriorityClass, type ServiceOrder } from "../stages/order/service-order.ts";

const WIRE_SAMPLERS: Readonly<Record<SamplerName, Sampler>> = {
  dpmpp_2m: Sampler.DPMPP_2M,
  dpmpp_2m_sde: Sampler.DPMPP_2M_SDE,
  euler: Sampler.EULER,
  euler_a: Sampler.EULER_A,
  ddim: Sampler.DDIM,
  unipc: Sampler.UNIPC,
  lcm: Sampler.LCM,
};

const WIRE_FORMATS: Readonly<Record<Exclude<ImageFormatName, "raw">, ImageFormat>> = {
  png: ImageFormat.PNG,
  jpeg: ImageFormat.JPEG,
  webp: ImageFormat.WEBP,
};

const WIRE_STAGES: Readonly<Record<Stage, WireStage>> = {
  text_encode: WireStage.TEXT_ENCODE,
  denoise: WireStage.DENOISE,
  image_decode: WireStage.IMAGE_DECODE,
};

const WIRE_CLASSES: Readonly<Record<PriorityClass, WireClass>> = {
  interactive: WireClass.INTERACTIVE,
  standard: WireClass.STANDARD,
  bulk: WireClass.BULK,
};

export function wireSampler(sampler: SamplerName): Sampler {
  return WIRE_SAMPLERS[sampler];
}

/**
 * The request as the pipeline knows it, read now. Only the form is judged here; the pipeline judges the values.
 *
 * @throws ServingError INVALID_REQUEST naming the field.
 */
export function readGenerateRequest(message: GenerateRequest, clock: Clock = systemClock): GenerationRequest {
  const { parameters } = message;
  if (message.requestId === "") throw refused("request_id", "is empty; it names the request in logs and events");
  if (parameters === undefined) throw refused("parameters", "are missing");
  const { model, prompt, negativePrompt, width, height, steps, guidanceScale, seed, numImages, karrasSigmas } =
    parameters;
  return {
    id: message.requestId,
    model,
    prompt,
    negativePrompt,
    width,
    height,
    steps,
    guidanceScale,
    sampler: named("sampler", WIRE_SAMPLERS, parameters.sampler),
    karras: karrasSigmas,
    seed,
    numImages,
    encoding: {
      format: named("format", WIRE_FORMATS, message.format),
      quality: message.quality === 0 ? QUALITY_DEFAULT : message.quality,
    },
    ...initImageOf(message, parameters),
    startLatent: message.startLatent && readStartLatent(message.startLatent),
    resumeFrom: readStates(message.resumeFrom, parameters),
    checkpointEverySteps: message.checkpointEverySteps,
    previewEverySteps: message.previewEverySteps,
    order: serviceOrder(message, clock),
  };
}

const TENANT_WEIGHT_MAX = 1000;

function serviceOrder({ order }: GenerateRequest, clock: Clock): ServiceOrder {
  if (order === undefined) return DEFAULT_ORDER;
  const { priorityClass, tenant, tenantWeight, finishWithinMs } = order;
  if (!(tenantWeight >= 0 && tenantWeight <= TENANT_WEIGHT_MAX)) {
    throw refused("order.tenant_weight", `${tenantWeight} is not from 0 to ${TENANT_WEIGHT_MAX}`);
  }
  return {
    priorityClass:
      priorityClass === WireClass.UNSPECIFIED
        ? DEFAULT_ORDER.priorityClass
        : named("order.priority_class", WIRE_CLASSES, priorityClass),
    tenant,
    weight: tenantWeight === 0 ? 1 : tenantWeight,
    finishAtMs: finishWithinMs === 0 ? undefined : clock.nowMs() + finishWithinMs,
  };
}

/** What images start from: strength and digest come with a picture, or with states that went out from one. */
function initImageOf(message: GenerateRequest, parameters: GenerationParameters): { initImage?: InitImage } {
  const { strength, initImageDigest: stated } = parameters;
  const { initImage: bytes, resumeFrom } = message;
  if (bytes.length === 0) {
    if (strength === 0 && stated === "") return {};
    if (resumeFrom.length === parameters.numImages) return { initImage: { digest: stated, strength } };
    if (strength !== 0) throw refused("strength", `${strength}: there is no init_image that it could apply to`);
    throw refused("init_image_digest", `"${stated}": there is no init_image that it could belong to`);
  }
  const digest = sha256(bytes);
  if (stated !== "" && stated !== digest) {
    throw refused("init_image_digest", `is "${stated}", but the init_image that came has ${digest}`);
  }
  return { initImage: { bytes, digest, strength } };
}

/** @throws ServingError INVALID_REQUEST naming start_latent where its form is wrong. */
function readStartLatent({ shape, latent: bytes, stepIndex }: WireStartLatent): GivenLatent {
  if (shape === undefined) throw refusedStart("has no shape");
  const { channels, height, width } = shape;
  if (bytes.length !== channels * height * width * Float32Array.BYTES_PER_ELEMENT) {
    const size = `${channels}x${height}x${width}`;
    throw refusedStart(`has ${bytes.length} bytes, float32 of its shape ${size} has ${channels * height * width * 4}`);
  }
  const copy = new Uint8Array(bytes); // protobuf hands out views at any offset; floats want to be aligned
  return {
    shape: { channels, height, width },
    latent: new Float32Array(copy.buffer),
    digest: sha256(bytes),
    stepIndex,
  };
}

/**
 * The states that the request goes on from, by the index of their image.
 *
 * @throws ServingError INVALID_REQUEST naming resume_from and the reason.
 */
function readStates(
  states: readonly DenoiseState[],
  parameters: GenerationParameters,
): GenerationRequest["resumeFrom"] {
  const images = new Map<number, MovedImage>();
  for (const state of states) {
    const { imageIndex, image } = readDenoiseState(state, parameters);
    if (images.has(imageIndex)) throw refused("resume_from", `holds two states of image ${imageIndex}`);
    images.set(imageIndex, image);
  }
  return images;
}

/** The name that `wire` gives to `value`. */
function named<Name extends string>(field: string, wire: Readonly<Record<Name, number>>, value: number): Name {
  const names = Object.keys(wire) as Name[];
  const name = names.find((candidate) => wire[candidate] === value);
  if (name !== undefined) return name;
  throw refused(field, `${value} is not one of ${names.map((known) => `${wire[known]} (${known})`).join(", ")}`);
}

function refused(field: string, complaint: string): ServingError {
  return new ServingError("INVALID_REQUEST", `${field} ${complaint}`, { field });
}

/** A checkpoint as a message: what is moved. `device` is where the image was made so far. */
export function wireState(
  { imageIndex, image }: Extract<GenerationEvent, { type: "checkpoint" }>,
  { parameters, device }: { readonly parameters: GenerationParameters; readonly device: string },
): DenoiseState {
  return writeDenoiseState(image, { parameters, imageIndex, device });
}

/** `sequence` is a number of its own among the worker's states. */
export function wireAccepted(
  { backlogMs, stepsTotal }: Extract<GenerationEvent, { type: "accepted" }>,
  sequence: bigint,
): GenerateResponse {
  const value = { backlogMs, stepsTotal, sequence };
  return create(GenerateResponseSchema, { event: { case: "accepted", value } });
}

/** An event as the stream carries it; a checkpoint and an acceptance have forms of their own. */
export function wireEvent(event: Exclude<GenerationEvent, { type: "accepted" | "checkpoint" }>): GenerateResponse {
  switch (event.type) {
    case "progress": {
      const { imageIndex, stepsDone, preview } = event;
      const value = { stage: WIRE_STAGES[event.stage], imageIndex, stepsDone, ...(preview && { preview }) };
      return create(GenerateResponseSchema, { event: { case: "progress", value } });
    }
    case "image": {
      const { imageIndex, seed, image } = event;
      return create(GenerateResponseSchema, { event: { case: "image", value: { imageIndex, seed, ...image } } });
    }
  }
}

export function wireCheckpoint(state: DenoiseState): GenerateResponse {
  return create(GenerateResponseSchema, { event: { case: "checkpoint", value: { state } } });
}

/** The last event of a stream. */
export function wireCompleted(...made: Parameters<typeof wireReceipt>): GenerateResponse {
  return create(GenerateResponseSchema, { event: { case: "completed", value: { receipt: wireReceipt(...made) } } });
}

export function wireReceipt(
  parameters: GenerationParameters,
  outcome: GenerationOutcome,
  worker: { readonly id: string; readonly device: string; readonly simulated: boolean },
): Receipt {
  const { modelDigest, hiresFix, promptChunks, times } = outcome;
  const { embeddingsCached, batchDifference, preemptions, deviceMs, tiledDecode, resumedAtSteps, reused } = outcome;
  return create(ReceiptSchema, {
    parameters,
    modelDigest,
    workerId: worker.id,
    device: worker.device,
    simulated: worker.simulated,
    ...(hiresFix && { hiresFix }),
    times,
    promptChunks,
    batchDifference,
    embeddingsCached,
    preemptions,
    deviceMs,
    resumedAtSteps: [...resumedAtSteps],
    tiledDecode,
    ...(reused && { reusedSteps: reused.steps, startLatentDigest: reused.digest }),
  });
}
