import type { DenoisePass, DenoiseWork } from "../fleet/step-costs.ts";
import type { ModelView } from "../fleet/worker-view.ts";
import type { ImageRequest } from "../image-request.ts";

/** Pixels of one latent place. */
const PLACE_PIXELS = 64;

/** What a request's way through the U-Net is, as a worker that has the model will plan it. */
export function denoiseWork(image: ImageRequest, model: Pick<ModelView, "defaults" | "twoPasses">): DenoiseWork {
  return {
    model: image.model,
    rows: image.guidanceScale > 1 ? 2 : 1,
    images: image.numImages,
    passes: passesOf(image, model),
  };
}

function passesOf(image: ImageRequest, { defaults, twoPasses }: Pick<ModelView, "defaults" | "twoPasses">) {
  const { width, height, steps, initPicture, startLatent } = image;
  const area = (width * height) / PLACE_PIXELS;
  // A picture has its layout already, so it is always one pass, over the share of the steps that its strength leaves.
  if (initPicture !== undefined) return [{ area, steps: Math.max(1, Math.trunc(steps * initPicture.strength)) }];
  const skipped = startLatent?.stepIndex ?? 0;
  if (twoPasses === undefined || width * height <= twoPasses.abovePixels) return [{ area, steps: steps - skipped }];
  const nativeArea = (defaults.nativeWidth * defaults.nativeHeight) / PLACE_PIXELS;
  const smallest = twoPasses.scaleMax > 0 ? area / twoPasses.scaleMax ** 2 : 0;
  const passes: DenoisePass[] = [
    { area: Math.min(area, Math.max(nativeArea, smallest)), steps: steps - skipped },
    { area, steps: Math.max(1, Math.trunc(steps * twoPasses.strength)) },
  ];
  return passes;
}
