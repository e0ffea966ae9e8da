/** One text encoder of a family, by its folders in the layout of diffusers. */
export interface TextEncoderRole {
  readonly folder: string;
  readonly tokenizer: string;
  /**
   * Which hidden state the U-Net was trained on: after the last layer and its norm, or the layer before the last.
   * Stable Diffusion 2 takes the one before the last as well, but its checkpoints leave the last layer out.
   */
  readonly layer: "last" | "penultimate";
  /** Gives the embedding of the whole text. */
  readonly pooled: boolean;
}

/** How the networks of a family fit together. Sizes are not among it: those are in the configuration files. */
export interface Family {
  /** Pipelines of diffusers that are made of these networks and no others: inpainting U-Nets have inputs of their own. */
  readonly pipelineClass: RegExp;
  /** In the order in which their hidden states are joined. */
  readonly textEncoders: readonly TextEncoderRole[];
  /** What the U-Net's `addition_embed_type` says: "text_time" takes the pooled embedding and the picture's size. */
  readonly additionEmbedType: "text_time" | null;
}

const first = { folder: "text_encoder", tokenizer: "tokenizer", pooled: false } as const;
const second = { folder: "text_encoder_2", tokenizer: "tokenizer_2", layer: "penultimate", pooled: true } as const;

const ONE_ENCODER: Family = {
  pipelineClass: /^(?:Onnx|ORT)?(?:StableDiffusion|StableDiffusionImg2Img|LatentConsistencyModel)Pipeline$/,
  textEncoders: [{ ...first, layer: "last" }],
  additionEmbedType: null,
};

/**
 * The architectures that are served. "sd" is one of its own lineage; "sd1" and "sd2" are Stable Diffusion's, built
 * alike, whose latents and adapters are known by these names.
 */
export const FAMILIES = {
  sd: ONE_ENCODER,
  sd1: ONE_ENCODER,
  sd2: ONE_ENCODER,
  // The refiner is not among them: it has one encoder, the second, and an aesthetic score in place of the target's size.
  sdxl: {
    pipelineClass: /^(?:ORT)?StableDiffusionXL(?:Img2Img)?Pipeline$/,
    textEncoders: [{ ...first, layer: "penultimate" }, second],
    additionEmbedType: "text_time",
  },
} as const satisfies Record<string, Family>;

export type FamilyName = keyof typeof FAMILIES;

export const FAMILY_NAMES = Object.keys(FAMILIES) as [FamilyName, ...FamilyName[]];
