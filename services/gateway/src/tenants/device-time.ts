import type { GenerationReceipt } from "../image-request.ts";

/** Device milliseconds that a generation took. */
export function deviceMsOf({ times }: Pick<GenerationReceipt, "times">): number {
  return times.textEncodeMs + times.denoiseMs + times.imageDecodeMs;
}
