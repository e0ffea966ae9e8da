import type { InitPicture } from "./init-picture.ts";
import type { SamplerName } from "./samplers.ts";

export const IMAGE_FORMATS = ["png", "jpeg", "webp"] as const;
export type ImageFormatName = (typeof IMAGE_FORMATS)[number];

export const MEDIA_TYPES: Record<ImageFormatName, string> = {
  png: "image/png",
  jpeg: "image/jpeg",
  webp: "image/webp",
};

/** The one request type inside the gateway: every dialect translates to it, every default is applied. */
export interface ImageRequest {
  /** Names the request to its caller, in logs and to the worker. */
  readonly id: string;
  readonly model: string;
  readonly prompt: string;
  readonly negativePrompt: string;
  /** Pixels. */
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly sampler: SamplerName;
  /** Noise levels spaced as Karras et al. do (arXiv:2206.00364, eq. 5); absent or false: as the model's own schedule. */
  readonly karrasSigmas?: boolean | undefined;
  /** 0..2^53-1; image i of the request uses seed + i. */
  readonly seed: number;
  readonly numImages: number;
  readonly format: ImageFormatName;
  /** JPEG and WebP, 1..100; undefined leaves it to the worker. */
  readonly quality: number | undefined;
  /** What the pictures start from; absent: from noise. */
  readonly initPicture?: InitPicture | undefined;
  /** A preview of each picture with every this many of its steps; absent: none. */
  readonly previewEvery?: number | undefined;
  /** Adapters on top of the model, in the order given. */
  readonly adapters: readonly AdapterUse[];
  /** Begins at a later step, from another generation's latent; absent: from noise. */
  readonly startLatent?: StartLatent | undefined;
  /** What was asked, where an overloaded system makes it with less; absent: nothing was taken away. */
  readonly reduced?: Reduced | undefined;
}

/** The steps and the sampler that the caller asked for, where the picture has others. */
export interface Reduced {
  readonly steps?: number;
  readonly sampler?: SamplerName;
}

/** An adapter (LoRA) and how strongly it acts; 1 is as it was trained. */
export interface AdapterUse {
  readonly name: string;
  readonly weight: number;
}

export interface StartLatent {
  /** float32, [channels, height, width] row-major, little-endian. */
  readonly latent: Uint8Array;
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  /** The first step to run; those before it are left out. */
  readonly stepIndex: number;
  /** Of the bundle that made it; another one begins from noise. */
  readonly modelDigest: string;
  /** No model ran; one that does begins from noise. */
  readonly simulated: boolean;
}

/** A request with every default applied but the seed, which is drawn where the caller named none. */
export type CompleteRequest = Omit<ImageRequest, "seed"> & { readonly seed: number | undefined };

/** A request as a dialect reads it: what the caller left open is undefined, for the model to fill in. */
export type ImageRequestDraft = Omit<
  ImageRequest,
  | "model"
  | "width"
  | "height"
  | "steps"
  | "guidanceScale"
  | "sampler"
  | "seed"
  | "initPicture"
  | "startLatent"
  | "adapters"
  | "reduced"
> & {
  readonly width: number | undefined;
  readonly height: number | undefined;
  readonly steps: number | undefined;
  readonly adapters?: readonly AdapterUse[] | undefined;
  readonly model: string | undefined;
  readonly guidanceScale: number | undefined;
  readonly sampler: SamplerName | undefined;
  readonly seed: number | undefined;
  /** Base64. */
  readonly initImage?: string | undefined;
  readonly strength?: number | undefined;
};

export interface GeneratedPicture {
  /** Encoded as `mediaType` says. */
  readonly data: Uint8Array;
  readonly mediaType: string;
  readonly width: number;
  readonly height: number;
  readonly seed: number;
}

export const STAGE_NAMES = ["text_encode", "denoise", "image_decode"] as const;
export type StageName = (typeof STAGE_NAMES)[number];

/** How far a request has come. */
export interface StageProgress {
  readonly stage: StageName;
  /** Over all pictures, of `stepsTotal`. */
  readonly stepsDone: number;
  readonly stepsTotal: number;
  /** The picture that got on. */
  readonly imageIndex: number;
}

/** A small PNG of a picture on its way. */
export interface Preview {
  readonly imageIndex: number;
  readonly stepsDone: number;
  readonly stepsTotal: number;
  readonly data: Uint8Array;
}

/** What is heard of a request on its way: accepted once, then progress, previews between. */
export type GenerationEvent =
  | { readonly type: "accepted"; readonly seed: number; readonly model: string; readonly stepsTotal: number }
  | ({ readonly type: "progress" } & StageProgress)
  | ({ readonly type: "preview" } & Preview);

/** What a request came to: its pictures in order, and what it takes to make them again. */
export interface Generation {
  readonly pictures: readonly GeneratedPicture[];
  readonly receipt: GenerationReceipt;
}

export interface GenerationReceipt {
  readonly model: string;
  readonly modelDigest: string;
  readonly workerId: string;
  readonly device: string;
  /** True when no model ran. */
  readonly simulated: boolean;
  readonly prompt: string;
  readonly negativePrompt: string;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly sampler: SamplerName;
  readonly karrasSigmas: boolean;
  readonly seed: number;
  readonly numImages: number;
  readonly promptChunks: number;
  readonly hiresFix: HiresFixReceipt | undefined;
  /** Of image to image; undefined where there was no picture. */
  readonly strength: number | undefined;
  readonly initImageDigest: string | undefined;
  readonly tiledDecode: boolean;
  /** The prompts were embedded before: the text encoder did not run. */
  readonly embeddingsCached: boolean;
  /** How often the pictures gave way to more urgent work, together. */
  readonly preemptions: number;
  /** By how much a U-Net prediction may depend on its batch mates; 0: not at all. */
  readonly batchDifference: number;
  /** Calls to workers that it took: 1 where nothing went wrong. */
  readonly attempts: number;
  /** Of those calls, in order; the pictures came from the last one, or from several. */
  readonly workerIds: readonly string[];
  /** For each picture that went on from a checkpoint: the step at which it did, last. */
  readonly resumedAtSteps: readonly number[];
  /** Steps of each picture that were left out, since it began from another generation's latent; 0: none. */
  readonly reusedSteps: number;
  readonly times: StageTimesMs;
  /** Of a whole device, waiting not included; absent where the worker does not say. */
  readonly deviceMs?: number | undefined;
}

export interface HiresFixReceipt {
  readonly nativeWidth: number;
  readonly nativeHeight: number;
  readonly strength: number;
  readonly upscale: string;
}

export interface StageTimesMs {
  readonly queueMs: number;
  readonly textEncodeMs: number;
  readonly denoiseMs: number;
  readonly imageDecodeMs: number;
}
