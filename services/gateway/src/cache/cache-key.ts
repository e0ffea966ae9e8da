import { createHash } from "node:crypto";
import { type Canonical, canonicalText, sha256 } from "@atelier/core";
import type { CompleteRequest } from "../image-request.ts";

/** Who shares results: a tenant keeps its own, or all tenants of this service have one cache. */
export const CACHE_SCOPES = ["tenant", "shared"] as const;
export type CacheScope = (typeof CACHE_SCOPES)[number];

/** Tenants' names never are. */
const EVERYBODY = "*";

/**
 * What decides whether a prompt may be drawn and what is done to the picture on top of the model. There is no policy
 * yet; whoever adds one puts its digest here, so that what was made under another is not found.
 */
export const POLICY_DIGEST = "none";

/** Goes up when the meaning of a key's parts or the form of a kept value changes: what was kept before is not found. */
const FORM = 1;

/** Whom results of `tenant` are kept for. */
export function keeperOf(tenant: string, scope: CacheScope): string {
  return scope === "shared" ? EVERYBODY : tenant;
}

/**
 * All that decides what is drawn, but the seed: two requests have one digest exactly if the same seed gives both the
 * same bytes, for the same people. Hex.
 */
export function pictureDigest(asked: CompleteRequest, made: { modelDigest: string; keeper: string }): string {
  // Who asks, how it is shown on the way, where it goes on from and what was asked at first change no picture.
  const { id: _id, previewEvery: _previews, startLatent: _start, reduced: _reduced, seed: _seed, ...drawn } = asked;
  const { model, prompt, negativePrompt, width, height, steps, guidanceScale, sampler, numImages, ...more } = drawn;
  const { karrasSigmas = false, format, quality = null, initPicture, adapters, ...rest } = more;
  rest satisfies Record<string, never>; // a new field of requests has to be given its place here
  const canonical: Canonical = {
    form: FORM,
    keeper: made.keeper,
    policy: POLICY_DIGEST,
    model,
    model_digest: made.modelDigest,
    prompt,
    negative_prompt: negativePrompt,
    width,
    height,
    steps,
    guidance_scale: guidanceScale,
    sampler,
    karras_sigmas: karrasSigmas,
    num_images: numImages,
    format,
    quality,
    init: initPicture === undefined ? null : { digest: sha256(initPicture.bytes), strength: initPicture.strength },
    adapters: adapters.map(({ name, weight }) => ({ name, weight })),
  };
  return hex(canonicalText(canonical));
}

/** The key of the pictures of one seed. Hex, 64 characters. */
export function keyOf(digest: string, seed: number): string {
  return hex(`${digest}:seed:${seed}`);
}

/** The key of what is kept of those for callers whom a similar prompt's latent will do to begin from. */
export function approximateKeyOf(digest: string, seed: number): string {
  return hex(`${digest}:seed:${seed}:approximate`);
}

/** The seed of variant `index` of what has no seed: every gateway finds the same. 0..2^32-1, as drawn seeds are. */
export function variantSeed(digest: string, index: number): number {
  return Number.parseInt(hex(`${digest}:variant:${index}`).slice(0, 8), 16);
}

function hex(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
