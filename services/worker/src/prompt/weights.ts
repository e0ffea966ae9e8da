import { invariant } from "@atelier/core";

/**
 * Scales each token's embedding by its weight, then brings the mean of all values back to where it was, so that
 * emphasis changes what the picture is about and not how strongly it is about anything.
 *
 * Shapes: `embeddings` [tokens, dim], row-major; `weights` [tokens]; one chunk at a time, as the encoder made it.
 * Where every weight is 1 the very same array comes back, so a plain prompt stays what diffusers makes of it.
 *
 * The mean is restored only where it is meaningful. Values of one sign, scaled by weights from a to b, move their mean
 * by a factor from a to b; a mean that moved by any other factor was a sum of values that nearly cancel, and dividing
 * by it would blow up or invert the embedding.
 *
 * Mutates nothing. Allocates one array unless all weights are 1.
 * Source: AUTOMATIC1111's stable-diffusion-webui, modules/sd_emphasis.py, `EmphasisOriginal`; the guard is ours.
 */
export function applyWeights(embeddings: Float32Array, weights: Float32Array): Float32Array {
  if (weights.every((weight) => weight === 1)) return embeddings;
  invariant(weights.length > 0 && embeddings.length % weights.length === 0, "one weight for each token");
  const dim = embeddings.length / weights.length;

  const scaled = embeddings.map((value, i) => value * weights[Math.floor(i / dim)]!);
  const moved = mean(scaled) / mean(embeddings);
  const restorable = Math.min(...weights) <= moved && moved <= Math.max(...weights) && moved > 0;
  return restorable ? scaled.map((value) => value / moved) : scaled;
}

/** In float64: a mean of 59,136 values loses digits in float32. */
function mean(values: Float32Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
