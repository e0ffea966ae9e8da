import { ServingError } from "@atelier/core";
import { z } from "zod";

/**
 * Schedulers trained on one and the same process, x = alpha * x0 + sigma * noise with alpha² + sigma² = 1, so that a
 * configuration written by any of them describes the model to every sampler of ours. Flow matching and EDM are others.
 */
const VARIANCE_PRESERVING = [
  "DDIMScheduler",
  "DDPMScheduler",
  "DEISMultistepScheduler",
  "DPMSolverMultistepScheduler",
  "DPMSolverSDEScheduler",
  "DPMSolverSinglestepScheduler",
  "EulerAncestralDiscreteScheduler",
  "EulerDiscreteScheduler",
  "HeunDiscreteScheduler",
  "KDPM2AncestralDiscreteScheduler",
  "KDPM2DiscreteScheduler",
  "LCMScheduler",
  "LMSDiscreteScheduler",
  "PNDMScheduler",
  "UniPCMultistepScheduler",
] as const;

const count = z.int().min(1).max(10_000);
const beta = z.number().gt(0).lt(1);

/**
 * Every field that changes a number in one of our samplers, and the values of it that they can follow. A field that
 * is absent takes the default of the diffusers class whose sampler runs, and these differ from class to class: hence
 * optional here and no defaults. Other keys are of no consequence and pass.
 */
const schema = z.object({
  _class_name: z.enum(VARIANCE_PRESERVING),
  num_train_timesteps: count.optional(),
  beta_start: beta.optional(),
  beta_end: beta.optional(),
  beta_schedule: z.enum(["linear", "scaled_linear", "squaredcos_cap_v2"]).optional(),
  trained_betas: z.array(beta).min(1).max(10_000).nullish(),
  rescale_betas_zero_snr: z.boolean().optional(),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]).optional(),
  timestep_spacing: z.enum(["leading", "trailing", "linspace"]).optional(),
  steps_offset: z.int().min(0).max(1000).optional(),
  use_karras_sigmas: z.boolean().nullish(),
  use_exponential_sigmas: z.boolean().nullish(),
  sigma_min: z.number().gt(0).nullish(),
  sigma_max: z.number().gt(0).nullish(),
  final_sigmas_type: z.enum(["zero", "sigma_min"]).optional(),
  lower_order_final: z.boolean().optional(),
  euler_at_final: z.boolean().optional(),
  lambda_min_clipped: z.union([z.number(), z.literal(-Infinity)]).optional(),
  clip_sample: z.boolean().optional(),
  clip_sample_range: z.number().gt(0).optional(),
  set_alpha_to_one: z.boolean().optional(),
  original_inference_steps: count.optional(),
  timestep_scaling: z.number().gt(0).optional(),
  // What diffusers knows and we do not: present at its harmless value, or refused.
  thresholding: z.literal(false).optional(), // made for pixels; harms latents
  use_beta_sigmas: z.literal(false).nullish(),
  use_lu_lambdas: z.literal(false).nullish(),
  use_flow_sigmas: z.literal(false).nullish(),
  use_dynamic_shifting: z.literal(false).nullish(),
  interpolation_type: z.literal("linear").optional(),
  timestep_type: z.literal("discrete").optional(),
  solver_order: z.literal(2).optional(),
  solver_type: z.enum(["midpoint", "bh2", "logrho"]).optional(), // each the plain form of its own class
  predict_x0: z.literal(true).optional(),
  disable_corrector: z.array(z.number()).max(0).optional(),
  solver_p: z.null().optional(),
  variance_type: z.enum(["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]).nullish(),
});

/** The schedule that a model was trained on, as its bundle's `scheduler/scheduler_config.json` states it. */
export type SchedulerConfig = Readonly<z.output<typeof schema>>;

export type PredictionType = NonNullable<SchedulerConfig["prediction_type"]>;

/**
 * Checks the parsed contents of a diffusers `scheduler_config.json`.
 *
 * @throws ServingError INVALID_BUNDLE naming every field that cannot be followed, with its value.
 */
export function readSchedulerConfig(json: unknown): SchedulerConfig {
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    const complaints = parsed.error.issues.map((issue) => {
      if (issue.path.length === 0) return "the file does not hold a JSON object";
      return `${issue.path.join(".")} is ${show(valueAt(json, issue.path))}: ${issue.message}`;
    });
    throw invalid(complaints.join("; "));
  }
  const config = parsed.data;
  if (config.trained_betas && config.trained_betas.length !== (config.num_train_timesteps ?? 1000)) {
    const { length } = config.trained_betas;
    throw invalid(`trained_betas has ${length} entries, num_train_timesteps is ${config.num_train_timesteps ?? 1000}`);
  }
  if (config.use_karras_sigmas && config.use_exponential_sigmas) {
    throw invalid("use_karras_sigmas and use_exponential_sigmas are both true");
  }
  return Object.freeze(config);
}

/**
 * Parses the text of a `scheduler_config.json`. Python writes infinities bare (`"lambda_min_clipped": -Infinity`),
 * which JSON has no word for.
 *
 * @throws ServingError INVALID_BUNDLE when the text is not JSON otherwise.
 */
export function parseSchedulerJson(text: string): unknown {
  // Strings are matched too, and put back as they were, so that only a bare word is replaced.
  const spelt = text.replace(/"(?:[^"\\]|\\.)*"|\bInfinity\b/g, (token) => (token === "Infinity" ? "1e999" : token));
  try {
    return JSON.parse(spelt);
  } catch (cause) {
    throw new ServingError("INVALID_BUNDLE", `scheduler_config.json is not JSON: ${(cause as Error).message}`, {
      cause,
    });
  }
}

function invalid(complaint: string): ServingError {
  return new ServingError("INVALID_BUNDLE", `scheduler_config.json: ${complaint}`);
}

function valueAt(json: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], json);
}

function show(value: unknown): string {
  const text = typeof value === "number" ? String(value) : (JSON.stringify(value) ?? "absent");
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}
