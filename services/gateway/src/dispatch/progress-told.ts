import type { GenerationEvent, StageName } from "../image-request.ts";
import type { Slice } from "./slice.ts";

/** Tells a caller of one undisturbed generation, whatever attempts it takes: accepted once, steps that never go back. */
export class ProgressTold {
  readonly #onEvent: ((event: GenerationEvent) => void) | undefined;
  readonly #numImages: number;
  /** Steps done of each slice that is being made; pictures outside of them are finished. */
  readonly #slices = new Map<Slice, number>();
  #stepsPerImage = 0;
  #told: { steps: number; stage: StageName } | undefined;

  constructor(numImages: number, onEvent: ((event: GenerationEvent) => void) | undefined) {
    this.#numImages = numImages;
    this.#onEvent = onEvent;
  }

  get begun(): boolean {
    return this.#stepsPerImage > 0;
  }

  /** The pictures of `before` that are not finished are now made as `slices`. */
  split(before: Slice | undefined, slices: readonly Slice[]): void {
    if (before !== undefined) this.#slices.delete(before);
    for (const slice of slices) this.#slices.set(slice, 0);
  }

  accepted(slice: Slice, stepsTotal: number, { seed, model }: { seed: number; model: string }): void {
    if (this.#stepsPerImage > 0) return;
    this.#stepsPerImage = Math.max(1, stepsTotal / slice.count);
    this.#onEvent?.({ type: "accepted", seed, model, stepsTotal: this.#stepsTotal });
  }

  /** `stepsDone` counts the slice's; `imageIndex` is the request's. */
  progress(
    slice: Slice,
    on: { stage: StageName | undefined; stepsDone: number; imageIndex: number; preview: Uint8Array },
  ) {
    const { stage, imageIndex, preview } = on;
    if (!this.#slices.has(slice)) return;
    this.#slices.set(slice, Math.max(this.#slices.get(slice)!, on.stepsDone));
    const stepsDone = this.#stepsDone;
    // An attempt that began anew is silent until it has caught up.
    const told = this.#told;
    if (told !== undefined && (stepsDone < told.steps || (stage === "text_encode" && told.stage !== stage))) return;
    const where = { imageIndex, stepsDone, stepsTotal: this.#stepsTotal };
    if (stage !== undefined) {
      this.#told = { steps: stepsDone, stage };
      this.#onEvent?.({ type: "progress", stage, ...where });
    }
    if (preview.length > 0) this.#onEvent?.({ type: "preview", ...where, data: preview });
  }

  get #stepsTotal(): number {
    return this.#stepsPerImage * this.#numImages;
  }

  get #stepsDone(): number {
    let steps = this.#stepsTotal;
    for (const [{ count }, done] of this.#slices) steps -= count * this.#stepsPerImage - done;
    return Math.max(0, steps);
  }
}
