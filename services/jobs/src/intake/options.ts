import { ServingError } from "@atelier/core";
import { readStrictly } from "@atelier/http";
import { z } from "zod";
import { JOB_PRIORITIES } from "../job.ts";
import { WEBHOOK_EVENTS } from "../webhooks/hook-url.ts";

/** Pictures of one row and preset. */
const VARIANTS_MAX = 1_000;
const PRESETS_MAX = 50;
const TEXT_CHARS_MAX = 10_000;
const DAYS_MAX = 3_650;

export const SHEET_FORMATS = ["csv", "jsonl", "json"] as const;
export type SheetFormat = (typeof SHEET_FORMATS)[number];

/** Names of presets, which are part of their records' keys and of items' file names. */
export const PRESET_NAME = /^[A-Za-z0-9_-]{1,64}$/;

const seed = z.int().min(0).max(Number.MAX_SAFE_INTEGER);

/** What a picture has beside its prompts; the model's limits are the gateway's to check. */
export const shapeDefaults = z.strictObject({
  model: z.string().min(1).max(200).optional(),
  width: z.int().min(1).max(65_536).optional(),
  height: z.int().min(1).max(65_536).optional(),
  steps: z.int().min(1).max(10_000).optional(),
  guidance_scale: z.number().min(0).max(1_000).optional(),
  sampler: z.string().min(1).max(100).optional(),
  karras_sigmas: z.boolean().optional(),
  format: z.enum(["png", "jpeg", "webp"]).optional(),
  quality: z.int().min(1).max(100).optional(),
});
export type ShapeDefaults = z.output<typeof shapeDefaults>;

const presetFields = {
  prompt_prefix: z.string().max(TEXT_CHARS_MAX).optional(),
  prompt_suffix: z.string().max(TEXT_CHARS_MAX).optional(),
  negative_prompt: z.string().max(TEXT_CHARS_MAX).optional(),
  defaults: shapeDefaults.optional(),
};

/** A preset under a name of its own. */
export const presetSchema = z.strictObject(presetFields);
export type Preset = z.output<typeof presetSchema>;

const inlinePreset = z.strictObject({ name: z.string().regex(PRESET_NAME), ...presetFields });
export type NamedPreset = z.output<typeof inlinePreset>;

const template = z.strictObject({
  prompt: z.string().min(1).max(TEXT_CHARS_MAX).optional(),
  negative_prompt: z.string().max(TEXT_CHARS_MAX).optional(),
  presets: z
    .array(z.union([z.string().regex(PRESET_NAME), inlinePreset]))
    .min(1)
    .max(PRESETS_MAX)
    .optional(),
  variants: z.int().min(1).max(VARIANTS_MAX).optional(),
  seed: seed.optional(),
  defaults: shapeDefaults.optional(),
  file_name: z.string().min(1).max(500).optional(),
});
export type TemplateOptions = z.output<typeof template>;

export const webhookSchema = z.strictObject({
  url: z.string().min(1).max(2_000),
  events: z.array(z.enum(WEBHOOK_EVENTS)).max(50).optional(),
});

const ownSettings = {
  name: z.string().min(1).max(200).optional(),
  priority: z.enum(JOB_PRIORITIES).optional(),
  webhook: webhookSchema.nullable().optional(),
  delete_after_days: z.number().min(0.01).max(DAYS_MAX).nullable().optional(),
};

export const submissionSchema = z.strictObject({
  ...ownSettings,
  template: template.optional(),
  on_error: z.enum(["reject", "skip"]).optional(),
  charset: z.string().min(1).max(40).optional(),
  format: z.enum(SHEET_FORMATS).optional(),
});
export type SubmissionOptions = z.output<typeof submissionSchema>;

export const cloneSchema = z.strictObject({
  ...ownSettings,
  /** Instead of what the items have now. */
  defaults: shapeDefaults.optional(),
  /** Other pictures of the same prompts: seeds are drawn anew, from `seed` where it is given. */
  new_seeds: z.boolean().optional(),
  seed: seed.optional(),
});

/** What a job has of its own, whatever its items are. */
export type OwnSettings = Pick<SubmissionOptions, keyof typeof ownSettings>;

/** @throws ServingError INVALID_REQUEST naming the field, its value and what it may be. */
export function readOptions(options: unknown): SubmissionOptions {
  refuseAdapters(options);
  return readStrictly(submissionSchema, options ?? {});
}

/**
 * Options out of a query, for bodies that have no room for them. A template is JSON, or the prompt alone.
 *
 * @throws ServingError INVALID_REQUEST.
 */
export function optionsOfQuery(query: Readonly<Record<string, unknown>>): unknown {
  const { dry_run: _, delete_after_days, template: asked, webhook_url, webhook_events, ...rest } = query;
  for (const [name, value] of Object.entries(query)) {
    if (typeof value === "string") continue;
    throw new ServingError("INVALID_REQUEST", `${name} is given more than once`, { field: name });
  }
  return {
    ...rest,
    ...(asked !== undefined && { template: templateOfText(String(asked)) }),
    ...(delete_after_days !== undefined && { delete_after_days: Number(delete_after_days) }),
    ...(webhook_url !== undefined && {
      webhook: {
        url: webhook_url,
        ...(webhook_events !== undefined && { events: String(webhook_events).split(",") }),
      },
    }),
  };
}

function templateOfText(text: string): unknown {
  if (!/^\s*\{\s*(?:"|\})/.test(text)) return { prompt: text };
  try {
    return JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ServingError("INVALID_REQUEST", `template begins as JSON and is none: ${why}`, { field: "template" });
  }
}

/** Fields that somebody who knows the other routes will try here. */
export const REFUSED_FIELDS: Readonly<Record<string, string>> = {
  adapters: "jobs take no adapters yet",
  loras: "jobs take no adapters yet",
  lora: "jobs take no adapters yet",
  init_image: "jobs take no starting pictures",
  strength: "jobs take no starting pictures",
  num_images: "an item is one picture; template.variants makes several of a row",
};

function refuseAdapters(options: unknown): void {
  const defaults = (options as { template?: { defaults?: unknown } } | null)?.template?.defaults;
  if (typeof defaults !== "object" || defaults === null) return;
  for (const name of Object.keys(defaults)) {
    if (!Object.hasOwn(REFUSED_FIELDS, name)) continue;
    const field = `template.defaults.${name}`;
    throw new ServingError("INVALID_REQUEST", `${field} cannot be set: ${REFUSED_FIELDS[name]}`, { field });
  }
}
