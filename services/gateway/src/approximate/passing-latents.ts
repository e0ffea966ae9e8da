import type { PassingLatent } from "../generations/ports.ts";
import { latentBytes } from "./latent-entry.ts";

/**
 * Of a picture on its way, the latents that others may begin from: for each useful step the last one that passed before
 * or at it. Only of its first pass, and of the request's first picture.
 */
export class PassingLatents {
  readonly #modelDigest: string;
  /** Ascending. */
  readonly #useful: readonly number[];
  readonly #kept = new Map<number, PassingLatent>();

  constructor(modelDigest: string, useful: readonly number[]) {
    this.#modelDigest = modelDigest;
    this.#useful = useful;
  }

  readonly see = (passing: PassingLatent): void => {
    const { imageIndex, modelDigest, phase, stepIndex, latent } = passing;
    if (imageIndex !== 0 || phase !== 0 || stepIndex < 1 || modelDigest !== this.#modelDigest) return;
    if (latent.length !== latentBytes(passing)) return;
    let copy: PassingLatent | undefined;
    for (const step of this.#useful) {
      if (stepIndex > step || stepIndex <= (this.#kept.get(step)?.stepIndex ?? 0)) continue;
      // Of its own: it came as a part of a message that holds more.
      copy ??= { ...passing, latent: Uint8Array.from(latent) };
      this.#kept.set(step, copy);
    }
  };

  /** Ascending by step, each once. */
  all(): readonly PassingLatent[] {
    return [...new Set(this.#kept.values())].sort((a, b) => a.stepIndex - b.stepIndex);
  }
}
