/** From an uploaded sheet and a template to a durable job. Knows nothing of HTTP, and nothing of how items are made. */
export { ChunkItems } from "./chunks.ts";
export { Intake, type IntakeOptions } from "./intake.ts";
export {
  cloneSchema,
  type NamedPreset,
  optionsOfQuery,
  type Preset,
  presetSchema,
  submissionSchema,
} from "./options.ts";
export type {
  CloneRequest,
  IntakeLimits,
  JobIntake,
  JobPreview,
  Submission,
  Submitted,
  TenantPresets,
} from "./submission.ts";
