import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { parseSchedulerJson, readSchedulerConfig } from "./scheduler-config.ts";

const SD21 = {
  _class_name: "DDIMScheduler",
  _diffusers_version: "0.8.0",
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  beta_start: 0.00085,
  clip_sample: false,
  num_train_timesteps: 1000,
  prediction_type: "v_prediction",
  set_alpha_to_one: false,
  skip_prk_steps: true,
  steps_offset: 1,
  trained_betas: null,
};

describe("readSchedulerConfig", () => {
  it("reads the schedule of Stable Diffusion 2.1, and passes over keys that change nothing", () => {
    const config = readSchedulerConfig(SD21);
    expect(config).toMatchObject({ beta_start: 0.00085, prediction_type: "v_prediction", steps_offset: 1 });
    expect(config).not.toHaveProperty("skip_prk_steps");
  });

  it("leaves what is absent absent, since each sampler's class has a default of its own", () => {
    expect(readSchedulerConfig({ _class_name: "PNDMScheduler" })).toEqual({ _class_name: "PNDMScheduler" });
  });

  it.each([
    ["_class_name", "FlowMatchEulerDiscreteScheduler"],
    ["_class_name", undefined],
    ["beta_schedule", "sigmoid"],
    ["beta_start", -1],
    ["beta_end", "0.012"],
    ["num_train_timesteps", 0],
    ["num_train_timesteps", 12.5],
    ["prediction_type", "flow_prediction"],
    ["timestep_spacing", "even"],
    ["steps_offset", -1],
    ["final_sigmas_type", "one"],
    ["lambda_min_clipped", "none"],
    ["thresholding", true],
    ["use_beta_sigmas", true],
    ["use_lu_lambdas", true],
    ["use_flow_sigmas", true],
    ["interpolation_type", "log_linear"],
    ["timestep_type", "continuous"],
    ["solver_order", 3],
    ["solver_type", "heun"],
    ["solver_type", "bh1"],
    ["disable_corrector", [0]],
    ["variance_type", "learned_range"],
  ])("refuses %s %j, naming both", (field, value) => {
    const read = () => readSchedulerConfig({ ...SD21, [field]: value });
    expect(read).toThrow(ServingError);
    expect(read).toThrow(`[INVALID_BUNDLE] scheduler_config.json: ${field} is ${JSON.stringify(value) ?? "absent"}:`);
  });

  it("names every field that is wrong, at once", () => {
    const read = () => readSchedulerConfig({ ...SD21, beta_schedule: "sigmoid", steps_offset: -1 });
    expect(read).toThrow(/beta_schedule is "sigmoid".*steps_offset is -1/);
  });

  it("refuses what fits no schedule together", () => {
    expect(() => readSchedulerConfig({ ...SD21, trained_betas: [0.1, 0.2] })).toThrow(/trained_betas has 2 entries/);
    const bothSpacings = { ...SD21, use_karras_sigmas: true, use_exponential_sigmas: true };
    expect(() => readSchedulerConfig(bothSpacings)).toThrow(/both true/);
  });

  it.each([null, 7, "text", []])("refuses %j, which is no object of fields", (json) => {
    expect(() => readSchedulerConfig(json)).toThrow(/INVALID_BUNDLE.*does not hold a JSON object/);
  });
});

describe("parseSchedulerJson", () => {
  it("reads the bare infinities that Python writes", () => {
    const text = '{"lambda_min_clipped": -Infinity, "sigma_max": Infinity}';
    expect(parseSchedulerJson(text)).toEqual({ lambda_min_clipped: -Infinity, sigma_max: Infinity });
  });

  it("leaves the word alone inside a string", () => {
    const text = '{"note": "to \\"Infinity\\" and -Infinity", "Infinity": 1}';
    expect(parseSchedulerJson(text)).toEqual({ note: 'to "Infinity" and -Infinity', Infinity: 1 });
  });

  it.each(["", "{", "{'a': 1}", '{"a": NaN}'])("refuses %j", (text) => {
    expect(() => parseSchedulerJson(text)).toThrow(/INVALID_BUNDLE.*scheduler_config\.json is not JSON/);
  });
});
