import { invariant } from "@atelier/core";
import type { EncodedText } from "./text-encode.ts";

/** A prompt as the U-Net takes it. Over shared memory: kept by one thread and read in another, with no copy. */
export interface EmbeddedPrompt {
  /** [tokens, width], flat. */
  readonly hidden: Float32Array;
  /** [pooled width]; absent where no encoder gives one. */
  readonly pooled?: Float32Array;
}

/**
 * Joins what each tower made of each chunk: chunks along the token axis, towers along the width. The pooled embedding
 * is the first chunk's, which is the whole prompt but for a very long one.
 *
 * Shapes: `byTower` [towers][chunks] of [chunk tokens, the tower's width]; the result [tokens, sum of widths].
 * Source: diffusers' StableDiffusionXLPipeline.encode_prompt for the towers; AUTOMATIC1111's stable-diffusion-webui,
 * modules/sd_hijack_clip.py, for the chunks.
 */
export function joinEmbedding(byTower: readonly (readonly EncodedText[])[], tokens: number): EmbeddedPrompt {
  const widths = byTower.map((chunks) => chunks.reduce((sum, { hidden }) => sum + hidden.length, 0) / tokens);
  invariant(widths.every(Number.isInteger), "every tower embeds every token");
  const width = widths.reduce((sum, own) => sum + own, 0);
  const hidden = sharedFloats(tokens * width);
  let column = 0;
  byTower.forEach((chunks, tower) => {
    const own = widths[tower]!;
    let token = 0;
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.hidden.length; at += own, token++) {
        hidden.set(chunk.hidden.subarray(at, at + own), token * width + column);
      }
    }
    column += own;
  });
  const pooled = byTower.map(([first]) => first?.pooled).find((values) => values !== undefined);
  if (pooled === undefined) return { hidden };
  const shared = sharedFloats(pooled.length);
  shared.set(pooled);
  return { hidden, pooled: shared };
}

export function zerosLike({ hidden, pooled }: EmbeddedPrompt): EmbeddedPrompt {
  return { hidden: sharedFloats(hidden.length), ...(pooled && { pooled: sharedFloats(pooled.length) }) };
}

export function bytesOf({ hidden, pooled }: EmbeddedPrompt): number {
  return hidden.byteLength + (pooled?.byteLength ?? 0);
}

function sharedFloats(length: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(length * Float32Array.BYTES_PER_ELEMENT));
}
