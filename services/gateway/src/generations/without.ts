import { newSeed } from "@atelier/core";
import { withSeed } from "../complete-request.ts";
import type { ResultCache } from "./ports.ts";

/** Everything is made anew. */
export const withoutCache: ResultCache = {
  serve: async (asked, { order, deadline, signal, onEvent }, make) => {
    const request = withSeed(asked, asked.seed ?? newSeed());
    const generation = await make(request, { order, deadline, signal, onEvent });
    return { request, generation, outcome: "bypass" };
  },
};
