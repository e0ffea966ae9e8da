/** Noise, noise schedules, samplers and latents: pure numbers, no I/O. Imports nothing of ours but core. */
export { createPlan, KARRAS_SAMPLERS, type PlanOptions, SAMPLERS } from "./create-plan.ts";
export { guide, type LatentShape, latentShape, latentSize } from "./latent.ts";
export { alphasCumprod } from "./noise-schedule.ts";
export {
  EMPTY_HISTORY,
  type SamplerHistory,
  type SamplerName,
  type SamplerPlan,
  type StepInput,
  type StepOutput,
} from "./sampler-plan.ts";
export { parseSchedulerJson, readSchedulerConfig, type SchedulerConfig } from "./scheduler-config.ts";
export { type NoisePosition, TorchGenerator } from "./torch-generator.ts";
export { type UpscaleMode, upscaleLatent } from "./upscale-latent.ts";
