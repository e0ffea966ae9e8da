import { type LatentShape, latentShape, type SamplerPlan, type UpscaleMode } from "@atelier/diffusion";
import type { BundleManifest } from "./bundle/index.ts";
import type { RefinePhase } from "./stages/denoise-job.ts";

/** How an image larger than its model was trained for is made; the receipt repeats it. */
export interface HiresFix {
  readonly nativeWidth: number;
  readonly nativeHeight: number;
  readonly strength: number;
  readonly upscale: UpscaleMode;
}

/** The passes over one image: one, or two where the hires fix applies; image to image is always one. */
export interface Phases {
  /** Of the first pass. */
  readonly shape: LatentShape;
  /** Step of the plan at which it starts: 0, but for image to image and from another generation's latent. */
  readonly firstStep: number;
  readonly refine: RefinePhase | undefined;
  readonly hiresFix: HiresFix | undefined;
  /** Of both passes together. */
  readonly steps: number;
}

interface Size {
  readonly width: number;
  readonly height: number;
}

/** An image to be made. */
interface Wish extends Size {
  /** Where it starts from another image: over 0 and up to 1. */
  readonly strength?: number | undefined;
  /** Where it starts from another generation's latent: the first step to run, below the plan's count. */
  readonly firstStep?: number | undefined;
}

/**
 * Plans the passes for an image of so many pixels. Above `hiresFix.abovePixels` of the manifest: first at about the
 * native pixel count with the same aspect, then image to image at the size asked for. An image that starts from another
 * has its layout already, which is what the first of those passes is for, so it is made in one pass at any size.
 *
 * @throws ServingError INVALID_REQUEST naming strength when it leaves no step to take.
 */
export function planPhases(
  { strength, firstStep = 0, ...size }: Wish,
  manifest: Pick<BundleManifest, "nativeSize" | "sizeMultiple" | "sizeMin" | "hiresFix">,
  plan: Pick<SamplerPlan, "stepCount" | "startIndex">,
  channels: number,
): Phases {
  const single = {
    shape: latentShape({ width: size.width, height: size.height, channels }),
    firstStep,
    refine: undefined,
    hiresFix: undefined,
    steps: plan.stepCount - firstStep,
  };
  if (strength !== undefined) {
    const joinedAt = plan.startIndex(strength);
    return { ...single, firstStep: joinedAt, steps: plan.stepCount - joinedAt };
  }
  const { hiresFix } = manifest;
  if (hiresFix === undefined || size.width * size.height <= hiresFix.abovePixels) return single;
  const native = nativeSizeFor(size, manifest, hiresFix.latentScaleMax ?? Infinity);
  if (native.width === size.width && native.height === size.height) return single;

  const refineAt = refineFrom(plan, hiresFix.strength);
  const { upscale } = hiresFix;
  return {
    shape: latentShape({ ...native, channels }),
    firstStep,
    refine: { shape: single.shape, upscale, firstStep: refineAt },
    hiresFix: { nativeWidth: native.width, nativeHeight: native.height, strength: hiresFix.strength, upscale },
    steps: single.steps + (plan.stepCount - refineAt),
  };
}

/** Steps of the whole image that are made where its pass of this phase stands at `stepIndex` of the plan. */
export function stepsDoneAt(
  { phase, stepIndex }: { readonly phase: 0 | 1; readonly stepIndex: number },
  { firstStep, refine }: Pick<Phases, "firstStep" | "refine">,
  { stepCount }: Pick<SamplerPlan, "stepCount">,
): number {
  return phase === 0 || refine === undefined
    ? stepIndex - firstStep
    : stepCount - firstStep + stepIndex - refine.firstStep;
}

/** `size` brought down to the native pixel count: same aspect, up to the multiple; neither side below the least. */
function nativeSizeFor(
  { width, height }: Size,
  { nativeSize, sizeMultiple, sizeMin }: Pick<BundleManifest, "nativeSize" | "sizeMultiple" | "sizeMin">,
  scaleMax: number,
): Size {
  const toNative = Math.sqrt((width * height) / (nativeSize.width * nativeSize.height));
  const scale = Math.max(1, Math.min(toNative, scaleMax, width / sizeMin, height / sizeMin));
  const side = (pixels: number) => Math.max(1, Math.round(pixels / scale / sizeMultiple)) * sizeMultiple;
  return { width: side(width), height: side(height) };
}

/** With few steps a strength may leave none; one is always made, since a latent that was only upscaled is blurred. */
function refineFrom(plan: Pick<SamplerPlan, "stepCount" | "startIndex">, strength: number): number {
  return Math.trunc(plan.stepCount * strength) >= 1 ? plan.startIndex(strength) : plan.stepCount - 1;
}
