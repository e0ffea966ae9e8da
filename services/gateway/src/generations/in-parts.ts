import { newSeed } from "@atelier/core";
import { findModel } from "../catalog.ts";
import { checkSeeds } from "../complete-request.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type { ImageRequestDraft } from "../image-request.ts";
import { viewsFor } from "../tenants/allow-lists.ts";
import type { Generations } from "./generations.ts";
import type { GenerationContext } from "./ports.ts";

/** A generation of some of the pictures that were asked for. */
export interface Part {
  readonly draft: ImageRequestDraft;
  /** The number of its first picture among all. */
  readonly first: number;
}

/**
 * Generations that come to all pictures of `draft` together: one, unless they are more than its model makes at once.
 * Their seeds follow each other as they would in one. Each is counted for itself, as if it had been asked for alone.
 *
 * @throws ServingError as Generations.complete does.
 */
export function partsOf(
  draft: ImageRequestDraft,
  { caller }: Pick<GenerationContext, "caller">,
  { generations, fleet }: { readonly generations: Pick<Generations, "complete">; readonly fleet: Pick<Fleet, "views"> },
): readonly [Part, ...Part[]] {
  const { model } = generations.complete({ ...draft, numImages: 1 }, caller);
  const { numImagesMax } = findModel(viewsFor(caller, fleet.views()), model).limits;
  if (draft.numImages <= numImagesMax) return [{ draft, first: 0 }];
  // Without a seed of its own each part could be answered with the same pictures out of the cache.
  const seed = draft.seed ?? newSeed();
  checkSeeds(seed, draft.numImages); // of all, before any is made
  const count = Math.ceil(draft.numImages / numImagesMax);
  const parts = Array.from({ length: count }, (_, i): Part => {
    const first = i * numImagesMax;
    const numImages = Math.min(numImagesMax, draft.numImages - first);
    return { draft: { ...draft, id: `${draft.id}-${i + 1}`, seed: seed + first, numImages }, first };
  });
  return parts as [Part, ...Part[]];
}
