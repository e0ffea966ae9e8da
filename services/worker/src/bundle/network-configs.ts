import { z } from "zod";
import type { BundleFiles } from "./bundle-files.ts";
import { type BundleProblems, show } from "./problems.ts";

/**
 * The fields of diffusers' and transformers' `config.json` files that change what we do. These files are not ours and
 * grow with every release, so other keys pass; a value that we could only follow wrongly does not.
 */
const textEncoder = z.object({
  hidden_size: z.int().min(1),
  vocab_size: z.int().min(1),
  max_position_embeddings: z.literal(77).default(77),
});

const unet = z.object({
  in_channels: z.int().min(1),
  out_channels: z.int().min(1).optional(),
  cross_attention_dim: z.int().min(1),
  // Conditioning that nothing in this family provides.
  addition_embed_type: z.null().optional(),
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
  latents_mean: z.null().optional(),
  latents_std: z.null().optional(),
});

export interface NetworkConfigs {
  readonly textEncoder: { readonly hiddenSize: number; readonly vocabularySize: number } | undefined;
  readonly unet: { readonly inChannels: number; readonly crossAttentionDim: number } | undefined;
  readonly vaeDecoder:
    | { readonly latentChannels: number; readonly scalingFactor: number; readonly shiftFactor: number | undefined }
    | undefined;
}

/** Reads each network's `config.json` and holds them against one another. What is undefined has been complained of. */
export async function readNetworkConfigs(files: BundleFiles, problems: BundleProblems): Promise<NetworkConfigs> {
  const text = await readConfigFile(files, "text_encoder/config.json", textEncoder, problems);
  const unetConfig = await readConfigFile(files, "unet/config.json", unet, problems);
  const decoder = await readConfigFile(files, "vae_decoder/config.json", vae, problems);

  if (unetConfig && decoder && unetConfig.in_channels !== decoder.latent_channels) {
    const reason = `in_channels is ${unetConfig.in_channels}, the VAE's latent_channels ${decoder.latent_channels}`;
    problems.add("unet/config.json", `${reason}; the two networks do not belong together`);
  }
  if (unetConfig && text && unetConfig.cross_attention_dim !== text.hidden_size) {
    const reason = `cross_attention_dim is ${unetConfig.cross_attention_dim}, the text encoder's hidden_size`;
    problems.add("unet/config.json", `${reason} ${text.hidden_size}; the two networks do not belong together`);
  }
  return {
    textEncoder: text && { hiddenSize: text.hidden_size, vocabularySize: text.vocab_size },
    unet: unetConfig && { inChannels: unetConfig.in_channels, crossAttentionDim: unetConfig.cross_attention_dim },
    vaeDecoder: decoder && {
      latentChannels: decoder.latent_channels,
      scalingFactor: decoder.scaling_factor,
      shiftFactor: decoder.shift_factor ?? undefined,
    },
  };
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
