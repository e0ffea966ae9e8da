import { invariant } from "@atelier/core";
import { mix } from "./vector.ts";

/** A latent is [channels, height, width], flat and row-major. */
export interface LatentShape {
  readonly channels: number;
  readonly height: number; // image height / VAE factor
  readonly width: number; // image width / VAE factor
}

/** The latent of an image of `width` x `height` pixels; both are multiples of `vaeFactor`. */
export function latentShape(image: {
  width: number;
  height: number;
  channels?: number;
  vaeFactor?: number;
}): LatentShape {
  const { width, height, channels = 4, vaeFactor = 8 } = image;
  invariant(width > 0 && width % vaeFactor === 0, `width ${width} is a multiple of ${vaeFactor}`);
  invariant(height > 0 && height % vaeFactor === 0, `height ${height} is a multiple of ${vaeFactor}`);
  return { channels, height: height / vaeFactor, width: width / vaeFactor };
}

/** How many numbers a latent of this shape holds. */
export function latentSize({ channels, height, width }: LatentShape): number {
  return channels * height * width;
}

/**
 * Classifier-free guidance: from what the model predicts without the prompt, through what it predicts with it, and on.
 * `scale` 1 is the conditional prediction alone.
 *
 * Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598; scale is their 1 + w.
 */
export function guide(unconditional: Float32Array, conditional: Float32Array, scale: number): Float32Array {
  invariant(unconditional.length === conditional.length, "both predictions have one shape");
  return mix(1 - scale, unconditional, scale, conditional);
}
