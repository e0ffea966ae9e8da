import { ServingError } from "@atelier/core";
import { showValue } from "@atelier/http";
import { z } from "zod";

/** Pictures of one call, over all of its batches. */
export const A1111_IMAGES_MAX = 16;

/**
 * Fields that nothing here depends on, as they say where files go on the server, or belong to a feature that another
 * field turns on and this dialect refuses: they are read, named in the answer, and change no picture.
 */
const IGNORED = [
  "save_images",
  "do_not_save_samples",
  "do_not_save_grid",
  "do_not_reload_embeddings",
  "override_settings_restore_afterwards",
  "comments",
  "script_args",
  "subseed",
  "s_tmin",
  "s_tmax",
  "refiner_switch_at",
] as const;

const IGNORED_OF_TXT2IMG = [
  "denoising_strength",
  "firstphase_width",
  "firstphase_height",
  "hr_scale",
  "hr_upscaler",
  "hr_second_pass_steps",
  "hr_resize_x",
  "hr_resize_y",
  "hr_checkpoint_name",
  "hr_sampler_name",
  "hr_scheduler",
  "hr_prompt",
  "hr_negative_prompt",
] as const;

const IGNORED_OF_IMG2IMG = [
  "image_cfg_scale",
  "mask_blur",
  "mask_blur_x",
  "mask_blur_y",
  "mask_round",
  "inpainting_fill",
  "inpaint_full_res",
  "inpaint_full_res_padding",
  "inpainting_mask_invert",
] as const;

/** Fields that would change the picture and are not served, with the values that ask for nothing. null always does. */
const NEUTRAL = {
  styles: [[]],
  subseed_strength: [0],
  seed_resize_from_h: [-1, 0],
  seed_resize_from_w: [-1, 0],
  restore_faces: [false],
  tiling: [false],
  s_churn: [0],
  s_noise: [1],
  s_min_uncond: [0],
  refiner_checkpoint: ["", "None"],
  script_name: ["", "None"],
  infotext: [""],
} as const;

const NEUTRAL_OF_TXT2IMG = { enable_hr: [false], firstpass_image: [""] } as const;

const NEUTRAL_OF_IMG2IMG = { mask: [""], latent_mask: [""], initial_noise_multiplier: [1] } as const;

const side = z.int().nullish().describe("Pixels; 512 when absent. The model has the limits.");

const honoured = {
  prompt: z.string().default("").describe("With <lora:name:weight> for adapters, which are taken out of it."),
  negative_prompt: z.string().nullish(),
  seed: z.int().min(-1).nullish().describe("-1 or absent: drawn. Picture i uses seed + i."),
  steps: z.int().min(1).max(150).nullish().describe("50 when absent."),
  cfg_scale: z.number().min(0).max(50).nullish().describe("7 when absent; 1 is no guidance."),
  width: side,
  height: side,
  sampler_name: z.string().nullish().describe("A name of /sdapi/v1/samplers; Euler when absent."),
  sampler_index: z.string().nullish().describe("The same, for older clients; sampler_name comes first."),
  scheduler: z.string().nullish().describe("Automatic or Karras."),
  batch_size: z.int().min(1).max(A1111_IMAGES_MAX).nullish(),
  n_iter: z.int().min(1).max(A1111_IMAGES_MAX).nullish(),
  eta: z.number().nullish().describe("As the sampler has it: 1 for Euler a and DPM++ 2M SDE, 0 for DDIM."),
  override_settings: z.record(z.string(), z.unknown()).nullish(),
  alwayson_scripts: z.record(z.string(), z.unknown()).nullish().describe("Without arguments only: none is served."),
  disable_extra_networks: z.boolean().nullish().describe("Adapters named in the prompt are left out."),
  send_images: z.boolean().nullish().describe("false: the answer has no pictures."),
  force_task_id: z.string().min(1).max(128).nullish().describe("Names the call to progress, interrupt and skip."),
};

export const txt2imgBody = z
  .strictObject({
    ...honoured,
    ...accepted(NEUTRAL, "Not served: "),
    ...accepted(NEUTRAL_OF_TXT2IMG, "Not served: "),
    ...ignoring([...IGNORED, ...IGNORED_OF_TXT2IMG]),
  })
  .meta({ id: "A1111Txt2Img" });

export const img2imgBody = z
  .strictObject({
    ...honoured,
    init_images: z
      .array(z.string())
      .length(1)
      .describe("a list of one picture, PNG, JPEG or WebP, in base64 or as a data: URL of it"),
    denoising_strength: z.number().gt(0).max(1).nullish().describe("0.75 when absent."),
    resize_mode: z
      .int()
      .min(0)
      .max(3)
      .nullish()
      .describe("1: scaled and cut to the size asked for; 0 where the picture has that shape already."),
    include_init_images: z.boolean().nullish().describe("true: `parameters` has them again."),
    ...accepted(NEUTRAL, "Not served: "),
    ...accepted(NEUTRAL_OF_IMG2IMG, "Not served: "),
    ...ignoring([...IGNORED, ...IGNORED_OF_IMG2IMG]),
  })
  .meta({ id: "A1111Img2Img" });

export type Txt2ImgBody = z.infer<typeof txt2imgBody>;
export type Img2ImgBody = z.infer<typeof img2imgBody>;

type Body = Readonly<Record<string, unknown>>;

/** @throws ServingError INVALID_REQUEST naming the first field that asks for what is not served. */
export function refuseUnserved(body: Body): void {
  for (const [field, neutral] of Object.entries({ ...NEUTRAL, ...NEUTRAL_OF_TXT2IMG, ...NEUTRAL_OF_IMG2IMG })) {
    if (isNeutral(body[field], neutral)) continue;
    throw refused(field, `is ${showValue(body[field])}, which is not served here; ${allowed(neutral)}`);
  }
  for (const [script, use] of Object.entries(body["alwayson_scripts"] ?? {})) {
    const { args = [] } = (use ?? {}) as { args?: unknown };
    if (Array.isArray(args) && args.length === 0) continue;
    throw refused("alwayson_scripts", `has arguments for ${showValue(script)}; no script is served here`);
  }
}

/** Those that the caller set to something and that change nothing. */
export function ignoredFields(body: Body): string[] {
  const names: readonly string[] = [...IGNORED, ...("init_images" in body ? IGNORED_OF_IMG2IMG : IGNORED_OF_TXT2IMG)];
  return names.filter((name) => !isNothing(body[name]));
}

/** Settings of a whole server there; here each has the one value that it has. */
const SETTINGS: Readonly<Record<string, readonly unknown[]>> = {
  CLIP_stop_at_last_layers: [1],
  sd_vae: ["Automatic", "None"],
  samples_format: ["png"],
  eta_noise_seed_delta: [0],
};

/** The model that override_settings names, if it does. @throws ServingError INVALID_REQUEST. */
export function checkpointOf(settings: Body | null | undefined): string | undefined {
  for (const [name, value] of Object.entries(settings ?? {})) {
    const field = `override_settings.${name}`;
    if (name === "sd_model_checkpoint") {
      if (value !== null && typeof value !== "string")
        throw refused(field, `is ${showValue(value)}; it must be a text`);
      continue;
    }
    const neutral = SETTINGS[name];
    if (neutral === undefined) throw refused("override_settings", `has ${showValue(name)}, which is no setting here`);
    if (!isNeutral(value, neutral)) throw refused(field, `is ${showValue(value)}; ${allowed(neutral)}`);
  }
  return (settings?.["sd_model_checkpoint"] as string | null | undefined) ?? undefined;
}

export function refused(field: string, complaint: string): ServingError {
  return new ServingError("INVALID_REQUEST", `${field} ${complaint}`, { field });
}

function accepted<Names extends string>(fields: Record<Names, readonly unknown[]>, what: string) {
  const entries = Object.entries<readonly unknown[]>(fields).map(([name, neutral]) => [
    name,
    z
      .unknown()
      .optional()
      .describe(what + allowed(neutral)),
  ]);
  return Object.fromEntries(entries) as Record<Names, z.ZodOptional<z.ZodUnknown>>;
}

function ignoring<Names extends string>(names: readonly Names[]) {
  const field = z.unknown().optional().describe("Changes nothing.");
  return Object.fromEntries(names.map((name) => [name, field])) as Record<Names, z.ZodOptional<z.ZodUnknown>>;
}

function isNeutral(value: unknown, neutral: readonly unknown[]): boolean {
  if (value === undefined || value === null) return true;
  return neutral.some((one) => (Array.isArray(one) ? Array.isArray(value) && value.length === 0 : one === value));
}

function isNothing(value: unknown): boolean {
  if (value === undefined || value === null || value === false || value === "") return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

function allowed(neutral: readonly unknown[]): string {
  return `leave it out or send ${neutral.map((value) => JSON.stringify(value)).join(" or ")}`;
}
