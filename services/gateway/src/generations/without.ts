import { newSeed } from "@atelier/core";
import { withSeed } from "../complete-request.ts";
import type { Admission, ResultCache, TenantLimits } from "./ports.ts";

/** Everything is made anew. */
export const withoutCache: ResultCache = {
  serve: async (asked, { order, deadline, signal, onEvent }, make) => {
    const request = withSeed(asked, asked.seed ?? newSeed());
    const generation = await make(request, { order, deadline, signal, onEvent });
    return { request, generation, outcome: "bypass" };
  },
};

/** Nobody has limits of their own. */
export const withoutTenantLimits: TenantLimits = {
  enter: async () => ({ signal: NEVER, leave: () => {} }),
};

/** Everything is let in. */
export const withoutAdmission: Admission = {
  adjust: (asked) => asked,
  enter: () => ({ leave: () => {} }),
};

const NEVER = new AbortController().signal;
