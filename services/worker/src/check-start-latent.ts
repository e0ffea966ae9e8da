import { ServingError } from "@atelier/core";
import { type LatentShape, latentSize, type SamplerPlan } from "@atelier/diffusion";
import type { Phases } from "./phases.ts";
import type { GenerationRequest } from "./request.ts";

/**
 * Whether another generation's latent fits what this request would run. Whose it was is not told: any latent of the shape
 * gives a picture, and which are worth it is the caller's to know.
 *
 * @throws ServingError INVALID_REQUEST naming `start_latent` and the reason.
 */
export function checkStartLatent(
  { startLatent, initImage }: GenerationRequest,
  { plan, phases }: { readonly plan: Pick<SamplerPlan, "stepCount">; readonly phases: Pick<Phases, "shape"> },
): void {
  if (startLatent === undefined) return;
  const { shape, latent, stepIndex } = startLatent;
  if (initImage !== undefined)
    throw refusedStart("cannot come together with an init_image: images start from one of them");
  if (!sameShape(shape, phases.shape)) {
    throw refusedStart(`has the shape ${shapeText(shape)}, the request's is ${shapeText(phases.shape)}`);
  }
  const size = latentSize(phases.shape);
  if (latent.length !== size) throw refusedStart(`holds ${latent.length} numbers, its shape has ${size}`);
  if (!(Number.isInteger(stepIndex) && stepIndex > 0 && stepIndex < plan.stepCount)) {
    throw refusedStart(`has step_index ${stepIndex}; it is over 0 and below the plan's ${plan.stepCount} steps`);
  }
  if (!latent.every(Number.isFinite)) throw refusedStart("holds NaN or an infinity");
}

export function refusedStart(complaint: string): ServingError {
  return new ServingError("INVALID_REQUEST", `start_latent ${complaint}`, { field: "start_latent" });
}

function sameShape(a: LatentShape, b: LatentShape): boolean {
  return a.channels === b.channels && a.height === b.height && a.width === b.width;
}

function shapeText({ channels, height, width }: LatentShape): string {
  return `${channels}x${height}x${width}`;
}
