import { ServingError } from "@atelier/core";
import { checkStartLatent } from "./check-start-latent.ts";
import { checkMovedImage } from "./denoise-state/check-moved-image.ts";
import type { Model } from "./models.ts";
import { type Phases, planPhases } from "./phases.ts";
import { checkRequest, type GenerationRequest } from "./request.ts";
import { previewMapOf } from "./stages/preview.ts";

/**
 * Judges a request by what its model can do, and plans its passes. Nothing has happened yet when it throws.
 *
 * @throws ServingError MODEL_NOT_FOUND, or INVALID_REQUEST naming the field, its value and what is allowed.
 */
export function planRequest(
  request: GenerationRequest,
  models: ReadonlyMap<string, Model>,
): { readonly model: Model; readonly phases: Phases } {
  const model = models.get(request.model);
  if (model === undefined) {
    const known = [...models.keys()].join(", ");
    throw new ServingError("MODEL_NOT_FOUND", `model "${request.model}" is not here; this worker has ${known}`, {
      field: "model",
    });
  }
  checkRequest(request, model.limits);
  checkPreview(request, model);
  checkInitImage(request, model);
  const plan = model.plans.get(request);
  const { width, height, initImage, startLatent } = request;
  const wish = { width, height, strength: initImage?.strength, firstStep: startLatent?.stepIndex };
  const phases = planPhases(wish, model.bundle.manifest, plan, model.bundle.latentChannels);
  checkStartLatent(request, { plan, phases });
  for (const image of request.resumeFrom?.values() ?? []) {
    checkMovedImage(image, { modelDigest: model.bundle.digest, plan, phases });
  }
  return { model, phases };
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
