import { z } from "zod";
import type { BundleFiles } from "./bundle-files.ts";
import { FAMILIES, type FamilyName, type TextEncoderRole } from "./families.ts";
import { type BundleProblems, show } from "./problems.ts";

/**
 * The fields of diffusers' and transformers' `config.json` files that change what we do. These files are not ours and
 * grow with every release, so other keys pass; a value that we could only follow wrongly does not.
 */
const textEncoder = z.object({
  hidden_size: z.int().min(1),
  vocab_size: z.int().min(1),
  max_position_embeddings: z.literal(77).default(77),
  // transformers' own defaults for CLIPTextConfig.
  num_hidden_layers: z.int().min(1).default(12),
  projection_dim: z.int().min(1).default(512),
});

const unet = z.object({
  in_channels: z.int().min(1),
  out_channels: z.int().min(1).optional(),
  cross_attention_dim: z.int().min(1),
  addition_embed_type: z.string().nullish(),
  addition_time_embed_dim: z.int().min(1).nullish(),
  projection_class_embeddings_input_dim: z.int().min(1).nullish(),
  // Conditioning that no family provides.
  class_embed_type: z.null().optional(),
  encoder_hid_dim_type: z.null().optional(),
  time_cond_proj_dim: z.null().optional(),
});

const vae = z.object({
  latent_channels: z.int().min(1).default(4),
  // diffusers' own default for AutoencoderKL, the figure of Stable Diffusion 1 and 2.
  scaling_factor: z.number().gt(0).default(0.18215),
  shift_factor: z.number().nullish(),
  // Three halvings, one fewer than there are blocks: the factor 8 that sizes are reckoned by.
  block_out_channels: z.array(z.int()).length(4).optional(),
  // Pixels along the side of what it was trained on; a pair where that was no square.
  sample_size: z.union([z.int().min(1), z.tuple([z.int().min(1), z.int().min(1)])]).optional(),
  latents_mean: z.null().optional(),
  latents_std: z.null().optional(),
});

export interface TextEncoderConfig {
  readonly hiddenSize: number;
  readonly vocabularySize: number;
  readonly layers: number;
  readonly pooledSize: number;
}

export interface NetworkConfigs {
  /** One for each of the family's, in its order. */
  readonly textEncoders: readonly (TextEncoderConfig | undefined)[];
  readonly unet: { readonly inChannels: number; readonly crossAttentionDim: number } | undefined;
  readonly vaeDecoder:
    | {
        readonly latentChannels: number;
        readonly scalingFactor: number;
        readonly shiftFactor: number | undefined;
        readonly decodeTile: number;
      }
    | undefined;
}

type UnetConfig = z.output<typeof unet>;
type VaeConfig = z.output<typeof vae>;

/** Reads each network's `config.json` and holds them against one another. What is undefined has been complained of. */
export async function readNetworkConfigs(
  files: BundleFiles,
  family: FamilyName,
  problems: BundleProblems,
): Promise<NetworkConfigs> {
  const textEncoders: (TextEncoderConfig | undefined)[] = [];
  for (const { folder } of FAMILIES[family].textEncoders) {
    const config = await readConfigFile(files, `${folder}/config.json`, textEncoder, problems);
    textEncoders.push(
      config && {
        hiddenSize: config.hidden_size,
        vocabularySize: config.vocab_size,
        layers: config.num_hidden_layers,
        pooledSize: config.projection_dim,
      },
    );
  }
  const unetConfig = await readConfigFile(files, "unet/config.json", unet, problems);
  const decoder = await readConfigFile(files, "vae_decoder/config.json", vae, problems);
  const encoder = files.names("vae_encoder/config.json")
    ? await readConfigFile(files, "vae_encoder/config.json", vae, problems)
    : undefined;

  if (unetConfig && decoder && unetConfig.in_channels !== decoder.latent_channels) {
    const reason = `in_channels is ${unetConfig.in_channels}, the VAE's latent_channels ${decoder.latent_channels}`;
    problems.add("unet/config.json", `${reason}; the two networks do not belong together`);
  }
  if (unetConfig) {
    const complaints = [
      ...complaintsAboutWidth(unetConfig, textEncoders),
      ...complaintsAboutAddition(unetConfig, family, textEncoders),
    ];
    for (const complaint of complaints) problems.add("unet/config.json", complaint);
  }
  if (decoder && encoder) checkOneVae(decoder, encoder, problems);
  return {
    textEncoders,
    unet: unetConfig && { inChannels: unetConfig.in_channels, crossAttentionDim: unetConfig.cross_attention_dim },
    vaeDecoder: decoder && {
      latentChannels: decoder.latent_channels,
      scalingFactor: decoder.scaling_factor,
      shiftFactor: decoder.shift_factor ?? undefined,
      decodeTile: decodeTileOf(decoder),
    },
  };
}

/** The hidden states of several encoders lie side by side. */
function complaintsAboutWidth(config: UnetConfig, textEncoders: readonly (TextEncoderConfig | undefined)[]): string[] {
  const widths = textEncoders.map((encoder) => encoder?.hiddenSize);
  if (!widths.every((width) => width !== undefined)) return [];
  const width = widths.reduce((sum, own) => sum + own, 0);
  if (config.cross_attention_dim === width) return [];
  const whose = widths.length === 1 ? "the text encoder's hidden_size" : `${widths.join(" + ")} hidden_sizes make`;
  const reason = `cross_attention_dim is ${config.cross_attention_dim}, ${whose} ${width}`;
  return [`${reason}; the two networks do not belong together`];
}

/** Height and width of the original, of the crop's corner, and of the target. */
export const TIME_IDS = 6;

function complaintsAboutAddition(
  config: UnetConfig,
  family: FamilyName,
  textEncoders: readonly (TextEncoderConfig | undefined)[],
): string[] {
  const { additionEmbedType, textEncoders: roles } = FAMILIES[family];
  const type = config.addition_embed_type ?? null;
  if (type !== additionEmbedType) {
    return [`addition_embed_type is ${show(type)}, and that of the family "${family}" is ${show(additionEmbedType)}`];
  }
  const pooled = pooledSize(roles, textEncoders);
  if (type === null || pooled === undefined) return [];
  const { addition_time_embed_dim: each, projection_class_embeddings_input_dim: all } = config;
  const expected = typeof each === "number" ? pooled + TIME_IDS * each : undefined;
  if (expected !== undefined && all === expected) return [];
  const parts = `the pooled embedding's ${pooled} and ${TIME_IDS} sizes of ${each ?? "an addition_time_embed_dim"} make`;
  return [`projection_class_embeddings_input_dim is ${show(all)}, and ${parts} ${expected ?? "it"}`];
}

/** Length of the pooled embedding; undefined where the family has none, or it is not known. */
export function pooledSize(
  roles: readonly TextEncoderRole[],
  textEncoders: readonly (TextEncoderConfig | undefined)[],
): number | undefined {
  return textEncoders[roles.findIndex(({ pooled }) => pooled)]?.pooledSize;
}

/** An encoder and a decoder may come from two bundles; their latents have to be one kind. */
function checkOneVae(decoder: VaeConfig, encoder: VaeConfig, problems: BundleProblems): void {
  for (const key of ["latent_channels", "scaling_factor", "shift_factor"] as const) {
    if ((encoder[key] ?? null) === (decoder[key] ?? null)) continue;
    const reason = `${key} is ${show(encoder[key])}, the decoder's ${show(decoder[key])}`;
    problems.add("vae_encoder/config.json", `${reason}; the two networks do not belong together`);
  }
}

async function readConfigFile<Schema extends z.ZodType>(
  files: BundleFiles,
  file: string,
  schema: Schema,
  problems: BundleProblems,
): Promise<z.output<Schema> | undefined> {
  const json = await files.json(file);
  if (json === undefined) return undefined;
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  for (const { path, message } of parsed.error.issues) {
    problems.add(file, `${path.join(".")} is ${show(json[String(path[0])])}: ${message}`);
  }
  return undefined;
}

/** Smaller tiles would be border for the most part. */
const DECODE_TILE_MIN = 32;
const DECODE_TILE_DEFAULT = 64;

/** As in diffusers the size that the VAE was trained on, in places of a latent; a multiple of 4, as tiles overlap by a quarter. */
function decodeTileOf({ sample_size: size }: VaeConfig): number {
  if (size === undefined) return DECODE_TILE_DEFAULT;
  const pixels = typeof size === "number" ? size : size[0];
  return Math.max(DECODE_TILE_MIN, Math.floor(pixels / 8 / 4) * 4);
}
