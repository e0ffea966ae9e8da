import { ServingError } from "@atelier/core";
import type { Caller } from "../caller.ts";
import { withSeed } from "../complete-request.ts";
import type { CompleteRequest, GenerationReceipt } from "../image-request.ts";
import type { Placer } from "../placement/placer.ts";

/** Device milliseconds that a generation took. */
export function deviceMsOf({ times }: Pick<GenerationReceipt, "times">): number {
  return times.textEncodeMs + times.denoiseMs + times.imageDecodeMs;
}

/** What a request would take; 0 while no worker is there to say. */
export function deviceMsPredictedBy(placer: Pick<Placer, "predict">) {
  return (asked: CompleteRequest, { priority, tenant }: Pick<Caller, "priority" | "tenant">): number => {
    try {
      return placer.predict(withSeed(asked, asked.seed ?? 0), { priority, tenant }).workMs;
    } catch (error) {
      if (error instanceof ServingError) return 0; // a cached answer needs no worker
      throw error;
    }
  };
}
