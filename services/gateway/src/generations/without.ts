import { newSeed } from "@atelier/core";
import { withSeed } from "../complete-request.ts";
import type { ResultCache, SimilarStarts } from "./ports.ts";

/** Every picture begins from noise. */
export const withoutSimilarStarts: SimilarStarts = {
  allowed: () => false,
  make: (image, limits, _use, make) => make(image, limits),
};

/** Everything is made anew. */
export const withoutCache: ResultCache = {
  serve: async (asked, { order, deadline, signal, onEvent }, make) => {
    const request = withSeed(asked, asked.seed ?? newSeed());
    const generation = await make(request, { order, deadline, signal, onEvent });
    return { request, generation, outcome: "bypass" };
  },
};
