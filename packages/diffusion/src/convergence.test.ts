import { describe, expect, it } from "vitest";
import { createPlan } from "./create-plan.ts";
import { EMPTY_HISTORY, type SamplerName, type SamplerPlan } from "./sampler-plan.ts";
import { readSchedulerConfig } from "./scheduler-config.ts";

/**
 * Images drawn from a Gaussian of standard deviation `SPREAD` have a closed-form noise prediction and a closed-form
 * path from noise to image, so that a sampler can be checked against truth, not against itself nor against another.
 *
 * Truth: along the path x / sqrt(alpha² SPREAD² + sigma²) stays what it was.
 */
describe("on a Gaussian image distribution, twice the steps make the error", () => {
  it.each<[SamplerName, string, number, number]>([
    ["euler", "half", 1.8, 2.2],
    ["ddim", "half", 1.8, 2.2],
    ["dpmpp_2m", "a quarter", 3.5, 5],
    ["unipc", "an eighth", 6.5, 10],
  ])("of %s %s", (sampler, _fraction, ratioMin, ratioMax) => {
    const coarse = samplingError(sampler, 50);
    const fine = samplingError(sampler, 100);
    expect(coarse / fine).toBeGreaterThan(ratioMin);
    expect(coarse / fine).toBeLessThan(ratioMax);
  });
});

const SPREAD = 0.5;

/**
 * Relative error after four fifths of the steps. Not at the end: the last step goes to a clean image and is of first
 * order in every sampler, and DDIM's even timesteps are few where the noise level falls fastest.
 */
function samplingError(sampler: SamplerName, steps: number): number {
  const schedule = readSchedulerConfig({ ...SD15, ...(sampler === "ddim" && { timestep_spacing: "trailing" }) });
  const plan = createPlan({ sampler, steps, schedule, ...(sampler !== "ddim" && { karras: true }) });
  const start = plan.initNoiseSigma;
  const end = plan.stepCount * 0.8;
  let latent: Float32Array = Float32Array.of(start);
  let history = EMPTY_HISTORY;
  for (let stepIndex = 0; stepIndex < end; stepIndex++) {
    const { alpha, sigma } = level(plan, stepIndex);
    const share = (sigma * Math.hypot(alpha, sigma)) / (alpha ** 2 * SPREAD ** 2 + sigma ** 2);
    const modelOutput = plan.modelInput(latent, stepIndex).map((x) => share * x);
    ({ latent, history } = plan.step({ stepIndex, latent, modelOutput, history, noise: () => latent }));
  }
  const exact = (start * deviation(plan, end)) / deviation(plan, 0);
  return Math.abs(latent[0]! - exact) / exact;
}

/** Standard deviation of noisy images before `stepIndex`. */
function deviation(plan: SamplerPlan, stepIndex: number): number {
  const { alpha, sigma } = level(plan, stepIndex);
  return Math.hypot(alpha * SPREAD, sigma);
}

/** The shares of image and of noise, as the plan itself adds them. */
function level(plan: SamplerPlan, stepIndex: number): { alpha: number; sigma: number } {
  const [one, none] = [Float32Array.of(1), Float32Array.of(0)];
  return { alpha: plan.addNoise(one, none, stepIndex)[0]!, sigma: plan.addNoise(none, one, stepIndex)[0]! };
}

const SD15 = {
  _class_name: "PNDMScheduler",
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  beta_start: 0.00085,
  clip_sample: false,
};
