import { createHash } from "node:crypto";
import { ServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import {
  type DenoiseState,
  DenoiseStateSchema,
  type GenerationParameters,
  GenerationParametersSchema,
  type RefinePass,
} from "@atelier/proto";
import { create, type DescMessage, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { JobSnapshot, RefinePhase } from "../stages/denoise-job.ts";

const SCHEMA_VERSION = 1;

/** A half-finished image and what it is of: all that is needed to finish it in another process. */
export interface MovedImage {
  readonly modelDigest: string;
  /** Of the pass that it is in. */
  readonly shape: LatentShape;
  readonly refine: RefinePhase | undefined;
  readonly snapshot: JobSnapshot;
}

/** The state as a message, its digest filled in. `device` is where the steps were made so far: "cpu", "cuda", ... */
export function writeDenoiseState(
  image: MovedImage,
  { parameters, imageIndex, device }: { parameters: GenerationParameters; imageIndex: number; device: string },
): DenoiseState {
  const { snapshot, refine } = image;
  const state = create(DenoiseStateSchema, {
    schemaVersion: SCHEMA_VERSION,
    modelDigest: image.modelDigest,
    parameters,
    imageIndex,
    phase: snapshot.phase,
    stepIndex: snapshot.stepIndex,
    shape: { ...image.shape },
    latent: bytesOf(snapshot.latent),
    history: snapshot.history.map(bytesOf),
    noise: { seed: snapshot.noise.seed, draws: BigInt(snapshot.noise.draws) },
    ...(refine && { refine: { shape: { ...refine.shape }, upscale: refine.upscale, firstStep: refine.firstStep } }),
    device,
  });
  state.digest = digestOf(state);
  return state;
}

/**
 * Reads a state that is to go on as an image of a request for `wanted`. What a worker must know of its model and plan to
 * judge is left to `checkMovedImage`.
 *
 * A state belongs to the image that has its seed, whatever its number was in the request that began it: what is left of
 * a request for four images can be asked for as a request for one.
 *
 * @throws ServingError INVALID_REQUEST naming `resume_from` and the reason.
 */
export function readDenoiseState(
  state: DenoiseState,
  wanted: GenerationParameters,
): { imageIndex: number; image: MovedImage } {
  if (state.schemaVersion !== SCHEMA_VERSION) {
    throw refused(`has schema_version ${state.schemaVersion}; this worker reads ${SCHEMA_VERSION}`);
  }
  const { parameters, shape, noise } = state;
  if (parameters === undefined) throw refused("has no parameters");
  if (shape === undefined) throw refused("has no shape");
  if (noise === undefined) throw refused("has no noise position");
  for (const part of [state, parameters, shape, noise, state.refine, state.refine?.shape]) {
    if (part?.$unknown?.length) throw refused(`holds fields that this worker does not know (${part.$typeName})`);
  }
  if (state.historyScalars.length > 0) {
    throw refused(`has ${state.historyScalars.length} history_scalars, and no sampler keeps any`);
  }
  if (!Buffer.from(digestOf(state)).equals(state.digest)) {
    throw refused("does not match its digest: it was cut, damaged or changed on the way");
  }
  checkSameParameters(parameters, wanted);
  const seed = parameters.seed + BigInt(state.imageIndex);
  if (noise.seed !== seed) throw refused(`draws noise of seed ${noise.seed}, and its image's seed is ${seed}`);
  const imageIndex = seed - wanted.seed;
  if (imageIndex < 0n || imageIndex >= BigInt(wanted.numImages)) {
    throw refused(`is of seed ${seed}, and the request's images have the seeds ${seedsOf(wanted)}`);
  }
  if (noise.draws > BigInt(Number.MAX_SAFE_INTEGER)) throw refused(`has taken ${noise.draws} draws of noise`);
  return {
    imageIndex: Number(imageIndex),
    image: {
      modelDigest: state.modelDigest,
      shape: { channels: shape.channels, height: shape.height, width: shape.width },
      refine: state.refine && refineOf(state.refine),
      snapshot: {
        phase: phaseOf(state.phase),
        stepIndex: state.stepIndex,
        latent: floatsOf(state.latent, "latent"),
        history: state.history.map((bytes, i) => floatsOf(bytes, `history[${i}]`)),
        noise: { seed: noise.seed, draws: Number(noise.draws) },
      },
    },
  };
}

export function refused(complaint: string): ServingError {
  return new ServingError("INVALID_REQUEST", `resume_from: the state ${complaint}`, { field: "resume_from" });
}

/** The picture must be the one that was begun. How many are asked for beside it, and from which seed, may differ. */
function checkSameParameters(begun: GenerationParameters, wanted: GenerationParameters): void {
  for (const { localName } of GenerationParametersSchema.fields) {
    if (localName === "seed" || localName === "numImages") continue;
    const [was, is] = [begun[localName as keyof GenerationParameters], wanted[localName as keyof GenerationParameters]];
    if (was === is) continue;
    throw refused(`was begun with ${localName} ${shown(was)}, the request has ${shown(is)}`);
  }
}

function shown(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value.slice(0, 80)) : String(value);
}

function seedsOf({ seed, numImages }: GenerationParameters): string {
  return numImages === 1 ? `${seed} alone` : `${seed} to ${seed + BigInt(numImages - 1)}`;
}

function phaseOf(phase: number): 0 | 1 {
  if (phase === 0 || phase === 1) return phase;
  throw refused(`is in phase ${phase}; there are 0 and 1`);
}

function refineOf({ shape, upscale, firstStep }: RefinePass): RefinePhase {
  if (shape === undefined) throw refused("has a second phase of no shape");
  if (upscale !== "nearest" && upscale !== "bilinear" && upscale !== "bicubic") {
    throw refused(`upscales by "${upscale.slice(0, 40)}"; nearest, bilinear and bicubic are known`);
  }
  const { channels, height, width } = shape;
  return { shape: { channels, height, width }, upscale, firstStep };
}

/** SHA-256 over the message with an empty digest, in the one encoding that our serialiser gives. */
function digestOf(state: DenoiseState): Uint8Array {
  const bare = { ...state, digest: new Uint8Array() };
  return createHash("sha256").update(encoded(DenoiseStateSchema, bare)).digest();
}

function encoded<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): Uint8Array {
  return toBinary(schema, message, { writeUnknownFields: false });
}

/** Little-endian float32, as every machine that runs us stores them. */
function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function floatsOf(bytes: Uint8Array, name: string): Float32Array {
  const { BYTES_PER_ELEMENT } = Float32Array;
  if (bytes.length % BYTES_PER_ELEMENT !== 0) throw refused(`has a ${name} of ${bytes.length} bytes, no whole floats`);
  const copy = new Uint8Array(bytes); // protobuf hands out views at any offset; floats want to be aligned
  return new Float32Array(copy.buffer);
}
