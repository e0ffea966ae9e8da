import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { createPlan, KARRAS_SAMPLERS, SAMPLERS } from "./create-plan.ts";
import { EMPTY_HISTORY, type SamplerHistory, type SamplerPlan } from "./sampler-plan.ts";
import { readSchedulerConfig, type SchedulerConfig } from "./scheduler-config.ts";
import { TorchGenerator } from "./torch-generator.ts";

/** That the numbers are diffusers' is held by test/golden/samplers.test.ts; here is what our form of sampler adds. */
describe.each(SAMPLERS)("the plan of %s", (sampler) => {
  it("lets two requests, one behind the other, share it without touching each other", () => {
    const plan = createPlan({ sampler, steps: 8, schedule: SD15 });
    const alone = [run(plan, { seed: 1 }), run(plan, { seed: 2 })];

    const first = request(plan, 1);
    const second = request(plan, 2);
    for (let turn = 0; turn < 8 + 3; turn++) {
      if (turn < 8) first.advance();
      if (turn >= 3) second.advance();
    }
    expect([first.latent, second.latent]).toEqual(alone);
  });

  it("goes on from written-down latent, history and noise position to the same last bit", () => {
    const plan = createPlan({ sampler, steps: 8, schedule: SD15 });
    const whole = request(plan, 7);
    for (let stepIndex = 0; stepIndex < 3; stepIndex++) whole.advance();
    const restored = request(createPlan({ sampler, steps: 8, schedule: SD15 }), 7, structuredClone(whole.state()));
    for (let stepIndex = 3; stepIndex < 8; stepIndex++) {
      whole.advance();
      restored.advance();
    }
    expect(restored.latent).toEqual(whole.latent);
  });

  it("writes to nothing that it is given", () => {
    const plan = createPlan({ sampler, steps: 8, schedule: SD15 });
    const one = request(plan, 1);
    for (let stepIndex = 0; stepIndex < 8; stepIndex++) {
      const before = one.state();
      const copy = structuredClone(before);
      one.advance();
      expect(before).toEqual(copy);
    }
  });

  it("previews at its last step the image that it ends with", () => {
    const plan = createPlan({ sampler, steps: 8, schedule: readSchedulerConfig({ ...SD15, set_alpha_to_one: true }) });
    const one = request(plan, 1);
    for (let stepIndex = 0; stepIndex < 8; stepIndex++) one.advance();
    const furthest = Math.max(...one.latent.map((x, i) => Math.abs(x - one.x0[i]!)));
    // DDIM's stride does not always end at timestep 0.
    expect(furthest).toBeLessThan(sampler === "ddim" ? 0.1 : 1e-6);
  });

  it("draws noise as often as diffusers does, so that a shared generator stays in step", () => {
    const plan = createPlan({ sampler, steps: 8, schedule: SD15 });
    const one = request(plan, 1);
    const drawsBefore = one.state().noise.draws;
    for (let stepIndex = 0; stepIndex < 8; stepIndex++) one.advance();
    const draws = (one.state().noise.draws - drawsBefore) / SIZE;
    expect(draws).toBe({ dpmpp_2m_sde: 8, euler_a: 8, lcm: 7 }[sampler as string] ?? 0);
  });

  it("takes as many steps as it was asked for, and stays finite", () => {
    for (const spacing of ["leading", "trailing", "linspace"]) {
      const schedule = readSchedulerConfig({ ...SD15, timestep_spacing: spacing });
      // 61, 103 and 121 are counts at which "trailing" would slip in one step too many.
      for (const steps of [1, 2, 3, 7, 14, 15, 16, 30, 50, 61, 103, 121, 150]) {
        if (sampler === "lcm" && steps > 50) continue;
        const plan = createPlan({ sampler, steps, schedule });
        expect(plan.stepCount, `${spacing}, ${steps} steps`).toBe(steps);
        const latent = run(plan, { seed: 1 });
        expect(latent.every(Number.isFinite), `${spacing}, ${steps} steps`).toBe(true);
      }
    }
  });

  it("names the limit when asked for more steps than the schedule has, or for none", () => {
    for (const steps of [0, -1, 2.5, Number.NaN, 1_000_000]) {
      const refused = refusal(() => createPlan({ sampler, steps, schedule: SD15 }));
      expect(refused).toMatchObject({ code: "INVALID_REQUEST", field: "steps" });
      expect(refused.message).toContain(`steps ${steps}`);
    }
  });

  it("starts image to image later for less strength, and refuses a strength that leaves nothing to do", () => {
    const plan = createPlan({ sampler, steps: 20, schedule: SD15 });
    expect([1, 0.6, 0.05].map((strength) => plan.startIndex(strength))).toEqual([0, 8, 19]);
    expect(refusal(() => plan.startIndex(0.04))).toMatchObject({ code: "INVALID_REQUEST", field: "strength" });
  });
});

describe("createPlan", () => {
  it("refuses Karras spacing to samplers that have none, rather than ignore it", () => {
    for (const sampler of SAMPLERS.filter((name) => !KARRAS_SAMPLERS.includes(name))) {
      const refused = refusal(() => createPlan({ sampler, steps: 8, schedule: SD15, karras: true }));
      expect(refused).toMatchObject({ code: "INVALID_REQUEST", field: "karras_sigmas" });
    }
  });

  it("follows the bundle's spacing when the caller has no wish, and the caller's when there is one", () => {
    const plain = createPlan({ sampler: "euler", steps: 8, schedule: SD15 }).timesteps;
    const schedule = readSchedulerConfig({ ...SD15, use_karras_sigmas: true });
    expect(createPlan({ sampler: "euler", steps: 8, schedule }).timesteps).not.toEqual(plain);
    expect(createPlan({ sampler: "euler", steps: 8, schedule, karras: false }).timesteps).toEqual(plain);
  });

  it("puts Karras spacing in the place of the bundle's exponential one, and gives that back when told not to", () => {
    const exponential = readSchedulerConfig({ ...SD15, use_exponential_sigmas: true });
    const timesteps = (schedule: SchedulerConfig, karras?: boolean) =>
      createPlan({ sampler: "euler", steps: 8, schedule, karras }).timesteps;
    expect(timesteps(exponential, true)).toEqual(timesteps(SD15, true));
    expect(timesteps(exponential, false)).toEqual(timesteps(exponential));
    expect(timesteps(exponential)).not.toEqual(timesteps(SD15));
  });

  it("says how many steps a distilled model has when lcm is asked for more", () => {
    const refused = refusal(() => createPlan({ sampler: "lcm", steps: 51, schedule: SD15 }));
    expect(refused).toMatchObject({ code: "INVALID_REQUEST", field: "steps" });
    expect(refused.message).toContain("at most 50");
  });

  it("refuses to follow epsilon from pure noise, where it says nothing", () => {
    const config = { ...SD15, rescale_betas_zero_snr: true, timestep_spacing: "trailing" };
    for (const sampler of ["ddim", "lcm"] as const) {
      const refused = refusal(() => createPlan({ sampler, steps: 8, schedule: readSchedulerConfig(config) }));
      expect(refused.code).toBe("INVALID_BUNDLE");
    }
  });
});

const SIZE = 64;
const SD15 = readSchedulerConfig({
  _class_name: "PNDMScheduler",
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  beta_start: 0.00085,
  clip_sample: false,
  set_alpha_to_one: false,
  steps_offset: 1,
});

interface State {
  readonly stepIndex: number;
  readonly latent: Float32Array;
  readonly history: SamplerHistory;
  readonly noise: TorchGenerator["position"];
}

/** One request as the denoise stage drives it, with half of what the model sees for its prediction. */
function request(plan: SamplerPlan, seed: number, from?: State) {
  const generator = from ? TorchGenerator.at(from.noise) : new TorchGenerator(seed);
  let latent = from?.latent ?? generator.randn(SIZE).map((x) => x * plan.initNoiseSigma);
  let history = from?.history ?? EMPTY_HISTORY;
  let stepIndex = from?.stepIndex ?? 0;
  let x0 = latent;
  return {
    advance() {
      const modelOutput = plan.modelInput(latent, stepIndex).map((x) => 0.5 * x);
      const noise = () => generator.randn(SIZE);
      ({ latent, history, x0 } = plan.step({ stepIndex, latent, modelOutput, history, noise }));
      stepIndex++;
    },
    state: (): State => ({ stepIndex, latent, history, noise: generator.position }),
    get latent() {
      return latent;
    },
    get x0() {
      return x0;
    },
  };
}

function run(plan: SamplerPlan, { seed }: { seed: number }): Float32Array {
  const one = request(plan, seed);
  for (let stepIndex = 0; stepIndex < plan.stepCount; stepIndex++) one.advance();
  return one.latent;
}

function refusal(run: () => unknown): ServingError {
  try {
    run();
  } catch (error) {
    if (error instanceof ServingError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
