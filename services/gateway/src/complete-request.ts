import { checkPromptText, ServingError } from "@atelier/core";
import { type CatalogModel, findModel } from "./catalog.ts";
import type { WorkerView } from "./fleet/worker-view.ts";
import type { CompleteRequest, ImageRequest, ImageRequestDraft } from "./image-request.ts";
import { readInitPicture } from "./init-picture.ts";
import { KARRAS_SAMPLERS, type SamplerName } from "./samplers.ts";

/**
 * Fills in what the caller left open from the model's defaults, and checks the whole against the model's limits, so
 * that a request that cannot be served costs no worker anything.
 *
 * @throws ServingError INVALID_REQUEST naming field, value and what is allowed; MODEL_NOT_FOUND; NO_WORKER.
 */
export function completeRequest(draft: ImageRequestDraft, fleet: readonly WorkerView[]): CompleteRequest {
  checkPromptText(draft.prompt, { field: "prompt" });
  checkPromptText(draft.negativePrompt, { field: "negative_prompt", emptyAllowed: true });
  const model = findModel(fleet, draft.model);
  const { width = model.defaults.width, height = model.defaults.height, steps = model.defaults.steps } = draft;
  checkSize({ width, height }, model);
  checkAtMost("steps", steps, model.limits.stepsMax, model);
  checkAtMost("num_images", draft.numImages, model.limits.numImagesMax, model);
  if (draft.seed !== undefined) checkSeeds(draft.seed, draft.numImages);
  checkQuality(draft);
  const sampler = draft.sampler ?? model.defaults.sampler;
  checkKarras(draft, sampler);
  const { initImage, strength, adapters = [], ...rest } = draft;
  checkAdapters(adapters);
  const initPicture = readInitPicture({ initImage, strength });
  return {
    ...rest,
    model: model.id,
    width,
    height,
    steps,
    seed: draft.seed,
    adapters,
    guidanceScale: draft.guidanceScale ?? model.defaults.guidanceScale,
    sampler,
    ...(initPicture && { initPicture }),
  };
}

export function withSeed(asked: CompleteRequest, seed: number): ImageRequest {
  return { ...asked, seed };
}

function checkAdapters([first]: readonly { readonly name: string }[]): void {
  if (first === undefined) return;
  throw new ServingError("INVALID_REQUEST", `loras names ${JSON.stringify(first.name)}; no adapter is served here`, {
    field: "loras",
  });
}

function checkSize({ width, height }: { width: number; height: number }, model: CatalogModel): void {
  checkSide("width", width, model);
  checkSide("height", height, model);
  const { pixelsMax } = model.limits;
  if (width * height > pixelsMax) {
    const message = `width x height is ${width} x ${height} = ${width * height} pixels; ${model.id} makes at most ${pixelsMax}`;
    throw new ServingError("INVALID_REQUEST", message, { field: "width" });
  }
}

function checkSide(field: "width" | "height", pixels: number, { id, limits }: CatalogModel): void {
  const { sizeMin, sizeMax, sizeMultiple } = limits;
  if (pixels >= sizeMin && pixels <= sizeMax && pixels % sizeMultiple === 0) return;
  const allowed = `a multiple of ${sizeMultiple} from ${sizeMin} to ${sizeMax} for ${id}`;
  throw new ServingError("INVALID_REQUEST", `${field} is ${pixels}; it must be ${allowed}`, { field });
}

function checkAtMost(field: "steps" | "num_images", value: number, max: number, model: CatalogModel): void {
  if (value <= max) return;
  throw new ServingError("INVALID_REQUEST", `${field} is ${value}; it must be at most ${max} for ${model.id}`, {
    field,
  });
}

/** @throws ServingError INVALID_REQUEST where the last of the pictures would have a seed that is not exact. */
export function checkSeeds(seed: number, numImages: number): void {
  // Subtracts, since adding would round above 2^53.
  if (seed <= Number.MAX_SAFE_INTEGER - (numImages - 1)) return;
  const message = `seed is ${seed}; with ${numImages} images the last seed would be above ${Number.MAX_SAFE_INTEGER}`;
  throw new ServingError("INVALID_REQUEST", message, { field: "seed" });
}

function checkKarras({ karrasSigmas = false }: ImageRequestDraft, sampler: SamplerName): void {
  if (!karrasSigmas || KARRAS_SAMPLERS.includes(sampler)) return;
  const message = `karras_sigmas is true, but ${sampler} has no such spacing; ${KARRAS_SAMPLERS.join(", ")} have`;
  throw new ServingError("INVALID_REQUEST", message, { field: "karras_sigmas" });
}

function checkQuality({ format, quality }: ImageRequestDraft): void {
  if (quality === undefined || format !== "png") return;
  throw new ServingError("INVALID_REQUEST", `quality is ${quality}, but png has none; it applies to jpeg and webp`, {
    field: "quality",
  });
}
