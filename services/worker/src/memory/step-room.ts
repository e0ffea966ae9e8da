import type { LatentShape } from "@atelier/diffusion";
import { type ActivationCurve, curveBytes } from "./activations.ts";

/** What the step batches of one model may take beside everything else. Plain data: it crosses threads. */
export interface StepRoom {
  /** Infinity where the budget is not known. */
  readonly bytes: number;
  /** As measured. */
  readonly curve: ActivationCurve;
}

/**
 * Rows of the largest step batch of this shape that fits beside one decode; 1 at least, since one row that does not fit
 * is the device's to refuse.
 */
export function rowsMax({ bytes, curve }: StepRoom, shape: LatentShape): number {
  return Math.max(1, Math.floor((bytes - curveBytes(curve.decode, shape)) / curveBytes(curve.unet, shape)));
}

export function sameRoom(a: StepRoom, b: StepRoom): boolean {
  return a.bytes === b.bytes && a.curve.unet.linear === b.curve.unet.linear;
}
