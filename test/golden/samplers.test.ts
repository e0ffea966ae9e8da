import {
  createPlan,
  EMPTY_HISTORY,
  readSchedulerConfig,
  SAMPLERS,
  type SamplerName,
  type SamplerPlan,
  TorchGenerator,
} from "@atelier/diffusion";
import { describe, expect, it } from "vitest";
import { largestError, readGolden, type Span } from "./golden-file.ts";

interface SamplerCase {
  readonly group: string;
  readonly sampler: SamplerName;
  readonly steps: number;
  readonly karras: boolean;
  readonly strength: number; // below 1: image to image
  readonly config: Readonly<Record<string, unknown>>;
  readonly initNoiseSigma: number;
  readonly startIndex: number;
  readonly timesteps: Span;
  readonly latents: Span; // the first one, and the one after each step
}

/**
 * Largest difference at any step, in units of the largest number in that latent. Measured: 1e-6 and, where Euler's
 * first step falls from a noise level of 4096 and the reference's own float32 is left with little, 1.1e-5.
 */
const ERROR_MAX = 1e-5;
const ERROR_FROM_ZERO_SNR_MAX = 1e-4;

const golden = readGolden<SamplerCase, { shape: number[]; seed: number; cleanSeed: number }>("samplers");
const size = golden.shape.reduce((product, side) => product * side, 1);

describe.each(SAMPLERS)("%s takes every latent where diffusers takes it", (sampler) => {
  const cases = golden.cases.filter((one) => one.sampler === sampler);
  const groups = [...new Set(cases.map((one) => one.group))];

  it.each(groups)("%s", (group) => {
    for (const one of cases.filter((other) => other.group === group)) {
      const about = `${one.steps} steps, karras ${one.karras}, strength ${one.strength}, ${JSON.stringify(one.config)}`;
      const schedule = readSchedulerConfig(one.config);
      const plan = createPlan({ sampler, steps: one.steps, schedule, ...(one.karras && { karras: true }) });

      expect(plan.startIndex(one.strength), about).toBe(one.startIndex);
      expect(plan.initNoiseSigma / one.initNoiseSigma, about).toBeCloseTo(1, 6);
      expect(largestError(plan.timesteps, golden.array(one.timesteps)), about).toBeLessThan(1e-6);
      const latents = latentsOf(plan, one);
      expect(latents.length * size, about).toBe(one.latents.length);
      latents.forEach((latent, i) => {
        const expected = golden.array({ offset: one.latents.offset + i * size, length: size });
        const errorMax = group === "zero terminal SNR" ? ERROR_FROM_ZERO_SNR_MAX : ERROR_MAX;
        expect(largestError(latent, expected), `latent ${i}, ${about}`).toBeLessThan(errorMax);
      });
    }
  });
});

/** The loop of a diffusion pipeline, from a seed: the same as in write.py. */
function latentsOf(plan: SamplerPlan, { startIndex, strength }: SamplerCase): Float32Array[] {
  const generator = new TorchGenerator(golden.seed);
  const noise = generator.randn(size);
  const clean = new TorchGenerator(golden.cleanSeed).randn(size);
  const fromImage = strength < 1;
  let latent = fromImage ? plan.addNoise(clean, noise, startIndex) : noise.map((x) => x * plan.initNoiseSigma);
  let history = EMPTY_HISTORY;
  const latents = [latent];
  for (let stepIndex = startIndex; stepIndex < plan.stepCount; stepIndex++) {
    const modelOutput = fakeModel(plan.modelInput(latent, stepIndex), plan.timesteps[stepIndex]!);
    ({ latent, history } = plan.step({ stepIndex, latent, modelOutput, history, noise: () => generator.randn(size) }));
    latents.push(latent);
  }
  return latents;
}

/** The same function as in write.py. */
function fakeModel(latent: Float32Array, timestep: number): Float32Array {
  const own = 0.5 + 0.3 * (timestep / 1000);
  return latent.map((x, i) => own * x + 0.1 * latent.at(i - 1)!);
}
