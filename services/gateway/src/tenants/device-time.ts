import { ServingError } from "@atelier/core";
import type { Caller } from "../caller.ts";
import { withSeed } from "../complete-request.ts";
import type { CompleteRequest, GenerationReceipt } from "../image-request.ts";
import type { Placer } from "../placement/placer.ts";

/**
 * Device milliseconds that a generation took: what its worker counted, which is its share of each run, so that a device's
 * generations add up to the time that it worked. Of a worker that does not say, the time from stage to stage, which is
 * more: it has waiting in it, and counts a batch for each of its members.
 */
export function deviceMsOf({ deviceMs, times }: Pick<GenerationReceipt, "deviceMs" | "times">): number {
  return deviceMs ?? times.textEncodeMs + times.denoiseMs + times.imageDecodeMs;
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
