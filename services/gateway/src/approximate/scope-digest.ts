import { createHash } from "node:crypto";
import { type Canonical, canonicalText } from "@atelier/core";
import { POLICY_DIGEST } from "../cache/cache-key.ts";
import type { ImageRequest } from "../image-request.ts";

/**
 * All that must be equal for one picture to begin from another's latent: everything that decides what is drawn but the
 * prompt and the seed, for the same people, by the same model. Hex.
 */
export function scopeDigest(image: ImageRequest, made: { modelDigest: string; keeper: string }): string {
  // A latent has no file format, and knows nothing of who asked and of the request's other pictures.
  const { id: _id, previewEvery: _previews, startLatent: _start, seed: _seed, ...drawn } = image;
  const {
    initPicture: _init,
    reduced: _reduced,
    prompt: _prompt,
    format: _format,
    quality: _quality,
    numImages: _count,
    ...shared
  } = drawn;
  const { model, negativePrompt, width, height, steps, guidanceScale, sampler, ...more } = shared;
  const { karrasSigmas = false, adapters, ...rest } = more;
  rest satisfies Record<string, never>; // a new field of requests has to be given its place here
  const canonical: Canonical = {
    keeper: made.keeper,
    policy: POLICY_DIGEST,
    model,
    model_digest: made.modelDigest,
    negative_prompt: negativePrompt,
    width,
    height,
    steps,
    guidance_scale: guidanceScale,
    sampler,
    karras_sigmas: karrasSigmas,
    adapters: adapters.map(({ name, weight }) => ({ name, weight })),
  };
  return createHash("sha256").update(canonicalText(canonical)).digest("hex");
}
