import { Deadline, ManualClock } from "@atelier/core";
import {
  createPlan,
  guide,
  latentSize,
  readSchedulerConfig,
  type SamplerPlan,
  TorchGenerator,
  upscaleLatent,
} from "@atelier/diffusion";
import { describe, expect, it } from "vitest";
import { DenoiseJob, type DenoiseJobOptions } from "./denoise-job.ts";

describe("DenoiseJob", () => {
  it("starts from the seed's noise at the sampler's first level, as diffusers does", () => {
    const plan = planOf("euler");
    const [row] = job({ plan, seed: 42n }).rows();
    const noise = new TorchGenerator(42n).randn(latentSize(SHAPE));
    const first = noise.map((x) => x * plan.initNoiseSigma);
    expect(row!.sample).toEqual(plan.modelInput(first, 0));
    expect(row!.timestep).toBe(plan.timesteps[0]);
  });

  it("starts from a picture's latent, its sample drawn before the noise as diffusers does", () => {
    const plan = planOf("euler");
    const size = latentSize(SHAPE);
    const [mean, std] = [filled(0.3), filled(0.1)];
    const generator = new TorchGenerator(9n);
    const sample = generator.randn(size).map((x, i) => mean[i]! + std[i]! * x);
    const expected = plan.addNoise(sample, generator.randn(size), 2);
    const fromPicture = job({ plan, seed: 9n, conditioning: PLAIN, start: { latents: { mean, std }, firstStep: 2 } });
    const [row] = fromPicture.rows();
    expect(row!.timestep).toBe(plan.timesteps[2]);
    expect(row!.sample).toEqual(plan.modelInput(expected, 2));

    fromPicture.advance([filled(0.1)]);
    fromPicture.advance([filled(0.1)]);
    expect(fromPicture.done).toBe(true);
    expect(fromPicture.stepsDone).toBe(2);
  });

  it("draws the noise alone where an encoder gives means without variances", () => {
    const plan = planOf("euler");
    const latents = { mean: filled(0.3), std: undefined };
    const [row] = job({ plan, seed: 9n, start: { latents, firstStep: 1 } }).rows();
    const noise = new TorchGenerator(9n).randn(latentSize(SHAPE));
    expect(row!.sample).toEqual(plan.modelInput(plan.addNoise(filled(0.3), noise, 1), 1));
  });

  it("asks for the negative prompt and the prompt with guidance, and for the prompt alone without", () => {
    const guided = job({ conditioning: { sequenceLength: 1, prompt: PROMPT, negative: NEGATIVE } });
    expect(guided.rows().map((row) => row.conditioning)).toEqual([NEGATIVE, PROMPT]);
    const plain = job({ conditioning: { sequenceLength: 1, prompt: PROMPT, negative: undefined } });
    expect(plain.rows().map((row) => row.conditioning)).toEqual([PROMPT]);
  });

  it("gives each row its pooled embedding, and the size in pixels of the phase that it is in", () => {
    const pooled = { prompt: Float32Array.of(5), negative: Float32Array.of(6) };
    const refine = { shape: LARGE, upscale: "nearest" as const, firstStep: 3 };
    const twoPhase = job({ refine, conditioning: { sequenceLength: 1, prompt: PROMPT, negative: NEGATIVE, pooled } });
    const [height, width] = [SHAPE.height * 8, SHAPE.width * 8];
    const small = Float32Array.of(height, width, 0, 0, height, width);
    expect(twoPhase.rows().map((row) => row.extras)).toEqual([
      { text_embeds: pooled.negative, time_ids: small },
      { text_embeds: pooled.prompt, time_ids: small },
    ]);
    for (let step = 0; step < 4; step++) twoPhase.advance([filled(0.2), filled(0.1)]);
    const large = Float32Array.of(64, 48, 0, 0, 64, 48);
    expect(twoPhase.rows().map((row) => row.extras?.["time_ids"])).toEqual([large, large]);
  });

  it("gives a U-Net that takes no pooled embedding nothing of the kind", () => {
    expect(
      job({})
        .rows()
        .some((row) => "extras" in row),
    ).toBe(false);
  });

  it("steps on what guidance makes of the two predictions", () => {
    const plan = planOf("ddim");
    const guided = job({ plan, guidanceScale: 3 });
    const [latent, a, b] = [guided.rows()[0]!.sample, filled(0.1), filled(0.4)];
    guided.advance([a, b]);
    const expected = plan.step({
      stepIndex: 0,
      latent,
      modelOutput: guide(a, b, 3),
      history: { arrays: [] },
      noise: () => filled(0),
    });
    expect(guided.rows()[0]!.sample).toEqual(plan.modelInput(expected.latent, 1));
  });

  it("does not keep arrays that the device writes again", () => {
    const one = job({ plan: planOf("dpmpp_2m", "sample"), conditioning: PLAIN });
    const other = job({ plan: planOf("dpmpp_2m", "sample"), conditioning: PLAIN });
    const shared = filled(0.5);
    for (let step = 0; step < 3; step++) {
      shared.fill(0.1 * step);
      one.advance([shared]);
      other.advance([filled(0.1 * step)]);
      shared.fill(99); // the device's next run, of other jobs
    }
    expect(one.rows()[0]!.sample).toEqual(other.rows()[0]!.sample);
  });

  it("fails on a prediction with NaN or an infinity", () => {
    for (const bad of [Number.NaN, Infinity]) {
      const prediction = filled(0);
      prediction[7] = bad;
      expect(() => job({ conditioning: PLAIN }).advance([prediction])).toThrow(/NUMERIC_FAILURE.*step 1/);
    }
  });

  it("says why it should not go on: cancelled, or out of time", () => {
    const clock = new ManualClock();
    const timed = job({ deadline: Deadline.after(clock, 10) });
    expect(timed.ended).toBeUndefined();
    clock.advance(10);
    expect(timed.ended?.code).toBe("DEADLINE_EXCEEDED");
    const cancelled = job({});
    cancelled.cancel();
    expect(cancelled.ended?.code).toBe("CANCELLED");
  });

  it("goes on, in two phases, from the upscaled latent with the generator's next noise", () => {
    const plan = planOf("euler");
    const refine = { shape: LARGE, upscale: "bicubic" as const, firstStep: 2 };
    const twoPhase = job({ plan, refine, seed: 5n, conditioning: PLAIN });
    const single = job({ plan, seed: 5n, conditioning: PLAIN });
    for (let step = 0; step < 4; step++) {
      twoPhase.advance([filled(0.2)]);
      single.advance([filled(0.2)]);
    }

    expect(single.done).toBe(true);
    expect(twoPhase.done).toBe(false);
    expect(twoPhase.shape).toEqual(LARGE);
    const generator = new TorchGenerator(5n);
    generator.randn(latentSize(SHAPE));
    const noise = generator.randn(latentSize(LARGE));
    const start = plan.addNoise(upscaleLatent(single.latent, SHAPE, LARGE, "bicubic"), noise, 2);
    const [row] = twoPhase.rows();
    expect(row!.sample).toEqual(plan.modelInput(start, 2));
    expect(row!.timestep).toBe(plan.timesteps[2]);

    const large = new Float32Array(latentSize(LARGE)).fill(0.1);
    twoPhase.advance([large]);
    twoPhase.advance([large]);
    expect(twoPhase.done).toBe(true);
    expect(twoPhase.stepsDone).toBe(6);
    expect(twoPhase.latent).toHaveLength(latentSize(LARGE));
  });
});

const SHAPE = { channels: 4, height: 4, width: 4 };
const LARGE = { channels: 4, height: 8, width: 6 };
const PROMPT = Float32Array.of(1);
const NEGATIVE = Float32Array.of(2);
const PLAIN = { sequenceLength: 1, prompt: PROMPT, negative: undefined };

function job(options: Partial<DenoiseJobOptions>): DenoiseJob {
  return new DenoiseJob({
    id: "job",
    model: "tiny",
    plan: planOf("ddim"),
    shape: SHAPE,
    refine: undefined,
    conditioning: { sequenceLength: 1, prompt: PROMPT, negative: NEGATIVE },
    guidanceScale: 2,
    seed: 1n,
    deadline: Deadline.after(new ManualClock(), 1000),
    ...options,
  });
}

function planOf(sampler: "ddim" | "euler" | "dpmpp_2m", prediction = "epsilon"): SamplerPlan {
  const schedule = readSchedulerConfig({
    _class_name: "DDIMScheduler",
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: "scaled_linear",
    clip_sample: false,
    set_alpha_to_one: false,
    steps_offset: 1,
    prediction_type: prediction,
  });
  return createPlan({ sampler, steps: 4, schedule });
}

function filled(value: number): Float32Array {
  return new Float32Array(latentSize(SHAPE)).fill(value);
}
