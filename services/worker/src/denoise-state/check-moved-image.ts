import { type LatentShape, latentSize, type SamplerName, type SamplerPlan } from "@atelier/diffusion";
import type { Phases } from "../phases.ts";
import { type MovedImage, refused } from "./denoise-state.ts";

/** Arrays that each sampler keeps after so many steps of a pass. A sampler takes its history for its own: others crash it. */
const HISTORY: Readonly<Record<SamplerName, (steps: number) => number>> = {
  dpmpp_2m: (steps) => Math.min(steps, 1),
  dpmpp_2m_sde: (steps) => Math.min(steps, 1),
  euler: () => 0,
  euler_a: () => 0,
  ddim: () => 0,
  unipc: (steps) => (steps === 0 ? 0 : 1 + Math.min(steps, 2)),
  lcm: () => 0,
};

/** What this worker would do with the request from the start; a state must fit into it. */
export interface PlannedImage {
  readonly modelDigest: string;
  readonly plan: Pick<SamplerPlan, "sampler" | "stepCount">;
  readonly phases: Phases;
}

/**
 * Whether this worker can finish the image as it was begun. A digest keeps nobody from writing a state of his own, so
 * nothing in it is believed: a wrong length would end in another request's memory, a wrong history in a sampler's
 * invariant and so the end of the process, a huge draw count in minutes of skipping.
 *
 * @throws ServingError INVALID_REQUEST naming `resume_from` and the reason.
 */
export function checkMovedImage({ modelDigest, shape, refine, snapshot }: MovedImage, planned: PlannedImage): void {
  const { plan, phases } = planned;
  if (modelDigest !== planned.modelDigest) {
    throw refused(`was begun on model ${modelDigest.slice(0, 80)}, here the model is ${planned.modelDigest}`);
  }
  if (!samePass(refine, phases.refine)) {
    throw refused(`has ${passText(refine)} as its second phase, this worker plans ${passText(phases.refine)}`);
  }
  const { phase, stepIndex, latent, history, noise } = snapshot;
  if (phase === 1 && phases.refine === undefined) throw refused("is in phase 1, and this image has one phase");
  const expected = phase === 1 ? phases.refine!.shape : phases.shape;
  if (!sameShape(shape, expected)) {
    throw refused(`has the latent shape ${shapeText(shape)}, the request's is ${shapeText(expected)}`);
  }
  const firstStep = phase === 1 ? phases.refine!.firstStep : phases.firstStep;
  if (stepIndex < firstStep || stepIndex >= plan.stepCount) {
    throw refused(`stands at step ${stepIndex}, this phase has ${firstStep} to ${plan.stepCount - 1}`);
  }
  const size = latentSize(expected);
  if (latent.length !== size) throw refused(`has a latent of ${latent.length} numbers, its shape has ${size}`);
  const steps = stepIndex - firstStep;
  const arrays = HISTORY[plan.sampler](steps);
  if (history.length !== arrays) {
    throw refused(`has ${history.length} arrays of history; after ${steps} steps ${plan.sampler} keeps ${arrays}`);
  }
  for (const [i, array] of history.entries()) {
    if (array.length !== size) throw refused(`has a history[${i}] of ${array.length} numbers, its shape has ${size}`);
  }
  if (![latent, ...history].every((array) => array.every(Number.isFinite))) throw refused("holds NaN or an infinity");
  const drawsMax = drawsOf(phases, plan.stepCount);
  if (noise.draws > drawsMax) {
    throw refused(`has taken ${noise.draws} draws of noise, the whole image takes at most ${drawsMax}`);
  }
}

/** Latents of noise that the whole image could take: the first, one before each phase, one at each step; and img2img's. */
function drawsOf({ shape, refine }: Phases, stepCount: number): number {
  const tail = 16; // a draw whose size is no multiple of 16 takes the last 16 again
  const first = (stepCount + 3) * (latentSize(shape) + tail);
  return first + (refine === undefined ? 0 : (stepCount + 1) * (latentSize(refine.shape) + tail));
}

function samePass(a: Phases["refine"], b: Phases["refine"]): boolean {
  if (a === undefined || b === undefined) return a === b;
  return a.upscale === b.upscale && a.firstStep === b.firstStep && sameShape(a.shape, b.shape);
}

function passText(pass: Phases["refine"]): string {
  return pass === undefined ? "nothing" : `${pass.upscale} to ${shapeText(pass.shape)} from step ${pass.firstStep}`;
}

function sameShape(a: LatentShape, b: LatentShape): boolean {
  return a.channels === b.channels && a.height === b.height && a.width === b.width;
}

function shapeText({ channels, height, width }: LatentShape): string {
  return `${channels}x${height}x${width}`;
}
