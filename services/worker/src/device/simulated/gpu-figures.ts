export const SIMULATED_GPUS = ["a10", "a100", "h100", "rtx4090"] as const;
export type SimulatedGpu = (typeof SIMULATED_GPUS)[number];

/** As it is written on a picture. */
export const GPU_NAMES: Readonly<Record<SimulatedGpu, string>> = {
  a10: "A10",
  a100: "A100",
  h100: "H100",
  rtx4090: "RTX 4090",
};

/** Milliseconds, and where they are from. */
export interface Figure {
  readonly ms: number;
  readonly source: string;
  /** True where nobody has published it and it follows from another GPU's or another model's by a ratio. */
  readonly interpolated?: true;
}

/** One model on one GPU, at the model's native size. */
export interface ModelFigures {
  /** One step of one picture with guidance: two rows. */
  readonly step: Figure;
  /** A prompt and a negative prompt, by all text encoders together. */
  readonly textEncode: Figure;
  /** One picture. */
  readonly decode: Figure;
}

export type SimulatedModel = "sd15" | "sdxl";

/** Latent places (height x width) at the native size: 512 and 1024 pixels a side. */
export const NATIVE_AREA: Readonly<Record<SimulatedModel, number>> = { sd15: 64 * 64, sdxl: 128 * 128 };

/**
 * What is published are times of whole pictures. Steps follow from them so:
 *
 * SDXL at 1024x1024. The card of stabilityai/stable-diffusion-xl-1.0-tensorrt has, with TensorRT, 30 steps with guidance
 * in 8160 ms on an A10, 2740 on an A100, 1470 on an H100, and LCM's 4 steps, without guidance, in 426 ms on an A100 (228
 * of them the VAE) and 234 on an H100. With S a step of two rows, 0.535 S one of a single row (see `ROWS_SHARE`), T the
 * text encoders, V the VAE: T + 30 S + V and T + 4 * 0.535 S + V give S = 83.1, T = 20.3 on the A100; S = 44.4 on the
 * H100, where T + V = 139.1 is divided as on the A100. The A10 has no LCM figure: T and V are the A100's times
 * 8160 / 2740. RTX 4090: Hugging Face's post on LCM has 3400 ms for 25 steps and 700 for LCM's 4, in PyTorch.
 *
 * SD 1.5 at 512x512. 50 steps with TensorRT: 820 ms on an A100 (fal's benchmark), 750 on an H100 PCIe (alexeigor's). T
 * and V are SDXL's on the same GPU, by parameters of the text encoders (123 of 818 million) and by area (a quarter).
 * The A10's and the 4090's steps are the A100's by the ratio of SDXL's steps.
 */
const CARD = "stabilityai/stable-diffusion-xl-1.0-tensorrt, model card";
const LCM_POST = "Hugging Face, post on LCM LoRA";
const BY_PARAMETERS = "SDXL's on this GPU, by parameters of the text encoders";
const BY_AREA = "SDXL's on this GPU, by area";

export const GPU_FIGURES: Readonly<Record<SimulatedGpu, Readonly<Record<SimulatedModel, ModelFigures>>>> = {
  a10: {
    sdxl: {
      step: { ms: 247.4, source: `${CARD}: 30 steps 8160 ms` },
      textEncode: { ms: 60.5, source: "the A100's, by 8160 / 2740", interpolated: true },
      decode: { ms: 679, source: "the A100's, by 8160 / 2740", interpolated: true },
    },
    sd15: {
      step: { ms: 45.3, source: "the A100's, by the ratio of SDXL's steps", interpolated: true },
      textEncode: { ms: 9.1, source: BY_PARAMETERS, interpolated: true },
      decode: { ms: 169.8, source: BY_AREA, interpolated: true },
    },
  },
  a100: {
    sdxl: {
      step: { ms: 83.1, source: `${CARD}: 30 steps 2740 ms, LCM's 4 steps 426 ms` },
      textEncode: { ms: 20.3, source: `${CARD}: 30 steps 2740 ms, LCM's 4 steps 426 ms` },
      decode: { ms: 228, source: `${CARD}: the VAE of an LCM run` },
    },
    sd15: {
      step: { ms: 15.2, source: "fal's benchmark: 50 steps 820 ms" },
      textEncode: { ms: 3.1, source: BY_PARAMETERS, interpolated: true },
      decode: { ms: 57, source: BY_AREA, interpolated: true },
    },
  },
  h100: {
    sdxl: {
      step: { ms: 44.4, source: `${CARD}: 30 steps 1470 ms, LCM's 4 steps 234 ms` },
      textEncode: { ms: 11.4, source: `${CARD}, divided as on the A100`, interpolated: true },
      decode: { ms: 127.7, source: `${CARD}, divided as on the A100`, interpolated: true },
    },
    sd15: {
      step: { ms: 14.3, source: "alexeigor's benchmark, H100 PCIe: 50 steps 750 ms" },
      textEncode: { ms: 1.7, source: BY_PARAMETERS, interpolated: true },
      decode: { ms: 31.9, source: BY_AREA, interpolated: true },
    },
  },
  rtx4090: {
    sdxl: {
      step: { ms: 118.1, source: `${LCM_POST}: 25 steps 3400 ms, LCM's 4 steps 700 ms` },
      textEncode: { ms: 36.6, source: `${LCM_POST}, divided as on the A100`, interpolated: true },
      decode: { ms: 410.6, source: `${LCM_POST}, divided as on the A100`, interpolated: true },
    },
    sd15: {
      step: { ms: 21.6, source: "the A100's, by the ratio of SDXL's steps", interpolated: true },
      textEncode: { ms: 5.5, source: BY_PARAMETERS, interpolated: true },
      decode: { ms: 102.7, source: BY_AREA, interpolated: true },
    },
  },
};

/**
 * What share of a run's time grows with its rows, at two latent areas; in between by the logarithm of the area.
 * 512x512: four pictures at once are made at twice the rate of one (A100, InvokeAI #204), so 4 / ((1 - f) + 4 f) = 2.
 * 1024x1024: 1.01 to 1.09 times the rate (sglang #22183, datadreamer #34); f = 0.93 gives 1.06 for four.
 */
export const ROWS_SHARE: readonly { readonly area: number; readonly share: number }[] = [
  { area: 64 * 64, share: 1 / 3 },
  { area: 128 * 128, share: 0.93 },
];
