import { z } from "zod";
import type { CatalogModel } from "../catalog.ts";
import type { Served } from "../generations/ports.ts";
import { base64Of } from "../http/pictures-json.ts";
import type { GeneratedPicture, ImageRequestDraft } from "../image-request.ts";
import { pictureSize } from "../picture-size.ts";
import {
  A1111_IMAGES_MAX,
  checkpointOf,
  type Img2ImgBody,
  ignoredFields,
  refused,
  refuseUnserved,
  type Txt2ImgBody,
} from "./a1111-fields.ts";
import { adaptersInPrompt, refuseUnservedSyntax } from "./a1111-prompt.ts";
import { A1111_SAMPLERS, etaIgnored, samplerOf } from "./a1111-samplers.ts";
import { receiptToJson } from "./receipt.ts";

/** What AUTOMATIC1111's API makes where a call says nothing. */
const DEFAULTS = { size: 512, steps: 50, cfgScale: 7, strength: 0.75 };
/** A whole number of steps between previews that makes about this many of them. */
const PREVIEWS = 8;

export interface A1111Request {
  readonly draft: ImageRequestDraft;
  /** Fields that were set and change nothing. */
  readonly ignored: readonly string[];
}

/**
 * A call of txt2img or img2img as the gateway's own request.
 *
 * @throws ServingError INVALID_REQUEST naming the field, in this dialect's own words.
 */
export function requestFromA1111(
  body: Txt2ImgBody | Img2ImgBody,
  { id, models }: { id: string; models: readonly CatalogModel[] },
): A1111Request {
  refuseUnserved(body);
  const { sampler, karrasSigmas } = samplerOf(body);
  const ignored = [...ignoredFields(body), ...(etaIgnored(body.eta, sampler) ? ["eta"] : [])];
  const { prompt, adapters } = adaptersInPrompt(body.prompt);
  const negativePrompt = body.negative_prompt ?? "";
  refuseUnservedSyntax("prompt", prompt);
  refuseUnservedSyntax("negative_prompt", negativePrompt);
  const steps = body.steps ?? DEFAULTS.steps;
  const width = body.width ?? DEFAULTS.size;
  const height = body.height ?? DEFAULTS.size;
  const draft: ImageRequestDraft = {
    id,
    format: "png",
    quality: undefined,
    model: modelNamed(checkpointOf(body.override_settings), models),
    prompt,
    adapters: body.disable_extra_networks === true ? [] : adapters,
    negativePrompt,
    width,
    height,
    steps,
    guidanceScale: body.cfg_scale ?? DEFAULTS.cfgScale,
    sampler,
    karrasSigmas,
    seed: (body.seed ?? -1) === -1 ? undefined : body.seed!,
    numImages: imagesOf(body),
    previewEvery: Math.ceil(steps / PREVIEWS),
    ...("init_images" in body && initOf(body, { width, height })),
  };
  return { draft, ignored };
}

function imagesOf({ batch_size: size, n_iter: batches }: Txt2ImgBody): number {
  const images = (size ?? 1) * (batches ?? 1);
  if (images <= A1111_IMAGES_MAX) return images;
  throw refused("n_iter", `x batch_size is ${images} pictures; a call makes at most ${A1111_IMAGES_MAX}`);
}

function initOf(body: Img2ImgBody, asked: { width: number; height: number }) {
  const initImage = body.init_images[0]!.replace(/^data:[^,]{0,100},/, "");
  const mode = body.resize_mode ?? 0;
  if (mode > 1) throw refused("resize_mode", `is ${mode}; 0 and 1 are served here`);
  if (mode === 0) checkShape(initImage, asked);
  return { initImage, strength: body.denoising_strength ?? DEFAULTS.strength };
}

/** Mode 0 stretches a picture of another shape, where all that we do is to cut it. */
function checkShape(initImage: string, { width, height }: { width: number; height: number }): void {
  const size = pictureSize(Buffer.from(initImage, "base64"));
  if (size === undefined || size.width * height === size.height * width) return;
  const shapes = `the picture is ${size.width} x ${size.height} and ${width} x ${height} is asked for`;
  throw refused("resize_mode", `is 0, which would stretch: ${shapes}; 1 cuts it to shape`);
}

/** The name that a model has in a list of checkpoints; its first ten digits of a digest are told apart as there. */
export function checkpointTitle({ id, digest }: Pick<CatalogModel, "id" | "digest">): string {
  return `${id} [${shortHash(digest)}]`;
}

export const digestHex = (digest: string) => digest.replace(/^sha256:/, "");
export const shortHash = (digest: string) => digestHex(digest).slice(0, 10);

/** The model's id where `checkpoint` is one of the names that this dialect gives it; else `checkpoint` itself. */
export function modelNamed(checkpoint: string | undefined, models: readonly CatalogModel[]): string | undefined {
  const found = models.find(
    (model) =>
      checkpoint === checkpointTitle(model) ||
      checkpoint === `${model.id}.safetensors` ||
      checkpoint === shortHash(model.digest),
  );
  return found?.id ?? checkpoint;
}

export const a1111Reply = z
  .object({
    images: z.array(z.string().meta({ contentEncoding: "base64" })).describe("PNG files."),
    parameters: z.record(z.string(), z.unknown()).describe("The call, as it came."),
    info: z
      .string()
      .describe("JSON: seeds, prompts and settings as the web UI has them, and our receipts under `atelier`."),
  })
  .meta({ id: "A1111Reply", description: "The pictures, and a text of JSON about them." });

export interface Answered {
  readonly body: Txt2ImgBody | Img2ImgBody;
  readonly draft: ImageRequestDraft;
  readonly ignored: readonly string[];
  /** What was made: less than was asked for where the call was interrupted. */
  readonly served: readonly Served[];
  readonly interrupted: boolean;
  readonly atMs: number;
}

export function replyToA1111(answered: Answered): z.infer<typeof a1111Reply> {
  const { body, served } = answered;
  const pictures = served.flatMap(({ generation }) => generation.pictures);
  const { init_images: initImages, ...parameters } = body as Partial<Img2ImgBody>;
  const shown = initImages && { init_images: body && (body as Img2ImgBody).include_init_images ? initImages : null };
  return {
    images: body.send_images === false ? [] : pictures.map(({ data }) => base64Of(data)),
    parameters: { ...parameters, ...shown },
    info: JSON.stringify(infoOf(answered, pictures)),
  };
}

/** Source: stable-diffusion-webui's modules/processing.py, `Processed.js`. */
function infoOf({ body, draft, ignored, served, interrupted, atMs }: Answered, pictures: readonly GeneratedPicture[]) {
  const made = served[0]?.generation.receipt;
  const { width, height, steps, sampler } = made ?? draft;
  const all = <T>(value: T) => pictures.map(() => value);
  const seeds = pictures.map(({ seed }) => seed);
  return {
    prompt: body.prompt,
    all_prompts: all(body.prompt),
    negative_prompt: draft.negativePrompt,
    all_negative_prompts: all(draft.negativePrompt),
    seed: seeds[0] ?? draft.seed ?? -1,
    all_seeds: seeds,
    subseed: -1,
    all_subseeds: all(-1),
    subseed_strength: 0,
    width,
    height,
    sampler_name: A1111_SAMPLERS[sampler!].name,
    scheduler: draft.karrasSigmas === true ? "Karras" : "Automatic",
    cfg_scale: draft.guidanceScale,
    steps,
    batch_size: body.batch_size ?? 1,
    restore_faces: false,
    face_restoration_model: null,
    sd_model_name: made?.model ?? null,
    sd_model_hash: made === undefined ? null : shortHash(made.modelDigest),
    sd_vae_name: null,
    sd_vae_hash: null,
    seed_resize_from_w: -1,
    seed_resize_from_h: -1,
    denoising_strength: draft.strength ?? null,
    extra_generation_params: {},
    index_of_first_image: 0,
    infotexts: seeds.map((seed) => infotext({ body, draft, served: served[0]!, seed })),
    styles: [],
    job_timestamp: jobTimestamp(atMs),
    clip_skip: 1,
    is_using_inpainting_conditioning: false,
    version: "atelier",
    atelier: { receipts: served.map(receiptToJson), ignored, interrupted },
  };
}

/** The text that the web UI writes under a picture, from what was really made. */
function infotext({
  body,
  draft,
  served,
  seed,
}: Pick<Answered, "body" | "draft"> & { served: Served; seed: number }): string {
  const { receipt } = served.generation;
  const settings = {
    Steps: receipt.steps,
    Sampler: A1111_SAMPLERS[receipt.sampler].name,
    "Schedule type": receipt.karrasSigmas ? "Karras" : "Automatic",
    "CFG scale": receipt.guidanceScale,
    Seed: seed,
    Size: `${receipt.width}x${receipt.height}`,
    "Model hash": shortHash(receipt.modelDigest),
    Model: receipt.model,
    ...(receipt.strength !== undefined && { "Denoising strength": receipt.strength }),
    Version: "atelier",
  };
  const negative = draft.negativePrompt === "" ? [] : [`Negative prompt: ${draft.negativePrompt}`];
  const list = Object.entries(settings).map(([name, value]) => `${name}: ${value}`);
  return [body.prompt, ...negative, list.join(", ")].join("\n");
}

/** 20260130174501, in UTC. */
export function jobTimestamp(atMs: number): string {
  return new Date(atMs).toISOString().replaceAll(/\D/g, "").slice(0, 14);
}
