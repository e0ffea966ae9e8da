import type { LatentShape } from "@atelier/diffusion";

/**
 * SDXL's micro-conditioning for a picture that is neither scaled nor cropped: its size in pixels as the original's,
 * the crop's top left corner, and its size again as the target's; heights first.
 *
 * Source: Podell et al., "SDXL", arXiv:2307.01952, section 2.2; the defaults of diffusers' StableDiffusionXLPipeline.
 */
export function timeIds({ height, width }: LatentShape): Float32Array {
  const [h, w] = [height * PIXELS_PER_LATENT, width * PIXELS_PER_LATENT];
  return Float32Array.of(h, w, 0, 0, h, w);
}

/** Per side. Every VAE that a bundle may have halves three times. */
const PIXELS_PER_LATENT = 8;
