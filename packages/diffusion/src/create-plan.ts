import { ServingError } from "@atelier/core";
import type { SamplerName, SamplerPlan } from "./sampler-plan.ts";
import { DdimPlan } from "./samplers/ddim.ts";
import { DpmSolverPlan } from "./samplers/dpm-solver.ts";
import { EulerPlan } from "./samplers/euler.ts";
import { LcmPlan } from "./samplers/lcm.ts";
import { UniPcPlan } from "./samplers/unipc.ts";
import type { SchedulerConfig } from "./scheduler-config.ts";

export const SAMPLERS: readonly SamplerName[] = [
  "dpmpp_2m",
  "dpmpp_2m_sde",
  "euler",
  "euler_a",
  "ddim",
  "unipc",
  "lcm",
];

/** The samplers whose noise levels can be spaced by Karras et al.; the others take theirs from the timesteps alone. */
export const KARRAS_SAMPLERS: readonly SamplerName[] = ["dpmpp_2m", "dpmpp_2m_sde", "euler", "unipc"];

export interface PlanOptions {
  readonly sampler: SamplerName;
  readonly steps: number;
  readonly schedule: SchedulerConfig;
  /** Karras spacing of the noise levels; absent, the bundle's own choice. */
  readonly karras?: boolean | undefined;
}

/**
 * The plan of `steps` steps that diffusers would follow with this sampler's class made `from_config` of the bundle's.
 * About 0.2 ms; plans never change, so keep them by (sampler, steps, karras) for each bundle.
 *
 * @throws ServingError INVALID_REQUEST naming `steps` or `karras_sigmas` when this sampler cannot do that,
 *   INVALID_BUNDLE when the schedule is one that it cannot follow.
 */
export function createPlan({ sampler, steps, schedule, karras }: PlanOptions): SamplerPlan {
  checkSteps(steps, schedule);
  const config = withKarras(sampler, schedule, karras);
  switch (sampler) {
    case "dpmpp_2m":
    case "dpmpp_2m_sde":
      return new DpmSolverPlan(sampler, config, steps);
    case "euler":
    case "euler_a":
      return new EulerPlan(sampler, config, steps);
    case "ddim":
      return new DdimPlan(config, steps);
    case "unipc":
      return new UniPcPlan(config, steps);
    case "lcm":
      return new LcmPlan(config, steps);
  }
}

/** One less than the schedule's length: the multistep solvers' "leading" spacing needs a stride of 1 for steps + 1. */
function checkSteps(steps: number, schedule: SchedulerConfig): void {
  const stepsMax = Math.max(1, (schedule.num_train_timesteps ?? 1000) - 1);
  if (Number.isInteger(steps) && 1 <= steps && steps <= stepsMax) return;
  const message = `steps ${steps}: this model's schedule has room for 1 to ${stepsMax}`;
  throw new ServingError("INVALID_REQUEST", message, { field: "steps" });
}

function withKarras(sampler: SamplerName, schedule: SchedulerConfig, karras: boolean | undefined): SchedulerConfig {
  if (karras === undefined) return schedule;
  if (karras && !KARRAS_SAMPLERS.includes(sampler)) {
    const message = `karras_sigmas: ${sampler} has no Karras spacing; ${KARRAS_SAMPLERS.join(", ")} do`;
    throw new ServingError("INVALID_REQUEST", message, { field: "karras_sigmas" });
  }
  return { ...schedule, use_karras_sigmas: karras };
}
