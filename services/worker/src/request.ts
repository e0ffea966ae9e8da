import { checkPromptText, ServingError } from "@atelier/core";
import type { LatentShape, SamplerName } from "@atelier/diffusion";
import type { BundleManifest } from "./bundle/index.ts";
import type { MovedImage } from "./denoise-state/denoise-state.ts";
import type { ImageEncoding } from "./stages/image-file.ts";
import type { ServiceOrder } from "./stages/order/service-order.ts";

/** What a caller asks for, every default applied. */
export interface GenerationRequest {
  /** Unique among requests in flight. */
  readonly id: string;
  readonly model: string;
  readonly prompt: string;
  readonly negativePrompt: string;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly sampler: SamplerName;
  /** Karras spacing of the noise levels; false leaves the bundle's own. */
  readonly karras: boolean;
  /** Image i uses seed + i. */
  readonly seed: bigint;
  readonly numImages: number;
  readonly encoding: ImageEncoding;
  /** Image to image: what the images start from. */
  readonly initImage?: InitImage;
  /** Another generation's latent on its way, from which every image starts. Not together with `initImage`. */
  readonly startLatent?: GivenLatent | undefined;
  /** Images that go on from where another process left them, by their index; the others start from noise. */
  readonly resumeFrom?: ReadonlyMap<number, MovedImage> | undefined;
  /** A checkpoint after every this many steps of an image; 0 or absent: none. */
  readonly checkpointEverySteps?: number;
  /** A preview with every this many steps of an image; 0 or absent: none. */
  readonly previewEverySteps?: number;
  /** Standard, of nobody in particular, where it is left out. */
  readonly order?: ServiceOrder;
}

export interface InitImage {
  /** A PNG, JPEG or WebP file. Absent where every image of the request goes on from a state that was saved. */
  readonly bytes?: Uint8Array;
  /** "sha256:..." of the bytes. */
  readonly digest: string;
  /** How much of the schedule is run, over 0 and up to 1. */
  readonly strength: number;
}

export interface GivenLatent {
  readonly shape: LatentShape;
  /** [channels, height, width], flat. */
  readonly latent: Float32Array;
  /** "sha256:..." of its bytes. */
  readonly digest: string;
  /** The first step to run. */
  readonly stepIndex: number;
}

export interface RequestLimits {
  readonly sizeMin: number;
  readonly sizeMax: number;
  readonly sizeMultiple: number;
  readonly pixelsMax: number;
  readonly stepsMax: number;
  readonly guidanceScaleMax: number;
  readonly numImagesMax: number;
}

const TENANT_LENGTH_MAX = 200;
const SEED_MAX = 2n ** 64n - 1n;

export function requestLimits(manifest: BundleManifest): RequestLimits {
  return {
    sizeMin: manifest.sizeMin,
    sizeMax: manifest.sizeMax,
    sizeMultiple: manifest.sizeMultiple,
    pixelsMax: manifest.sizeMax ** 2,
    stepsMax: 150,
    guidanceScaleMax: 30, // beyond it every model we know saturates; a typing error is likelier
    numImagesMax: 8,
  };
}

/**
 * Whether the model can make this. The gateway asks the same earlier; a worker does not rely on it.
 *
 * @throws ServingError INVALID_REQUEST naming the field, its value and what is allowed.
 */
export function checkRequest(request: GenerationRequest, limits: RequestLimits): void {
  checkPromptText(request.prompt, { field: "prompt" });
  checkPromptText(request.negativePrompt, { field: "negative_prompt", emptyAllowed: true });
  checkSide("width", request.width, limits);
  checkSide("height", request.height, limits);
  if (request.width * request.height > limits.pixelsMax) {
    const size = `${request.width}x${request.height}`;
    throw refused("width", size, `an image has at most ${limits.pixelsMax} pixels`);
  }
  checkNumber("steps", request.steps, { min: 1, max: limits.stepsMax, whole: true });
  checkNumber("guidance_scale", request.guidanceScale, { min: 0, max: limits.guidanceScaleMax, whole: false });
  checkNumber("num_images", request.numImages, { min: 1, max: limits.numImagesMax, whole: true });
  checkNumber("quality", request.encoding.quality, { min: 1, max: 100, whole: true });
  if (request.initImage !== undefined) checkStrength(request.initImage.strength);
  const tenant = request.order?.tenant ?? "";
  if (tenant.length > TENANT_LENGTH_MAX) {
    throw refused("order.tenant", `${tenant.slice(0, 20)}...`, `at most ${TENANT_LENGTH_MAX} characters`);
  }
  if (request.seed < 0n || request.seed + BigInt(request.numImages - 1) > SEED_MAX) {
    throw refused("seed", String(request.seed), `seed and seed + num_images - 1 are within 0..${SEED_MAX}`);
  }
}

function checkSide(field: string, value: number, { sizeMin, sizeMax, sizeMultiple }: RequestLimits): void {
  if (Number.isInteger(value) && value >= sizeMin && value <= sizeMax && value % sizeMultiple === 0) return;
  throw refused(field, String(value), `a multiple of ${sizeMultiple} within ${sizeMin}..${sizeMax}`);
}

function checkNumber(field: string, value: number, range: { min: number; max: number; whole: boolean }): void {
  const { min, max, whole } = range;
  if (value >= min && value <= max && (!whole || Number.isInteger(value))) return;
  throw refused(field, String(value), `a ${whole ? "whole " : ""}number within ${min}..${max}`);
}

function checkStrength(strength: number): void {
  if (!(strength > 0 && strength <= 1)) {
    throw refused("strength", String(strength), "with an init image a number over 0 and up to 1");
  }
}

function refused(field: string, value: string, allowed: string): ServingError {
  return new ServingError("INVALID_REQUEST", `${field} ${value}: ${allowed}`, { field });
}
