import { createPlan, type SamplerName, type SamplerPlan, type SchedulerConfig } from "@atelier/diffusion";

const PLANS_MAX = 256;

export interface PlanKey {
  readonly sampler: SamplerName;
  readonly steps: number;
  /** True asks for Karras spacing; false leaves the bundle's own. */
  readonly karras: boolean;
}

/** Sampler plans of one model. They never change, and a busy worker asks for a few of them over and over. */
export class Plans {
  readonly #schedule: SchedulerConfig;
  readonly #plans = new Map<string, SamplerPlan>();

  constructor(schedule: SchedulerConfig) {
    this.#schedule = schedule;
  }

  /** @throws ServingError INVALID_REQUEST or INVALID_BUNDLE, as `createPlan`. */
  get({ sampler, steps, karras }: PlanKey): SamplerPlan {
    const key = `${sampler} ${steps} ${karras}`;
    const kept = this.#plans.get(key);
    if (kept !== undefined) return kept;
    const plan = createPlan({ sampler, steps, schedule: this.#schedule, karras: karras ? true : undefined });
    if (this.#plans.size >= PLANS_MAX) this.#plans.delete(this.#plans.keys().next().value!);
    this.#plans.set(key, plan);
    return plan;
  }
}
