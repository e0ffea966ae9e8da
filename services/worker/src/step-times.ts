import type { LatentShape } from "@atelier/diffusion";

/** How much the newest run counts: about the last ten runs decide. */
const NEWEST_SHARE = 0.2;

/**
 * Milliseconds that one row takes in a U-Net run, learned for each model and latent shape.
 *
 * The first run of a shape is left out: it allocates, and would be believed for a long time. Shapes not met yet are
 * taken in proportion to their area from the nearest that was.
 */
export class StepTimes {
  readonly #learned = new Map<string, { model: string; area: number; msPerRow: number | undefined }>();

  observe(run: { model: string; shape: LatentShape; rows: number; ms: number }): void {
    const area = run.shape.height * run.shape.width;
    const key = `${run.model} ${run.shape.height}x${run.shape.width}`;
    const known = this.#learned.get(key);
    const msPerRow = run.ms / run.rows;
    if (known === undefined) this.#learned.set(key, { model: run.model, area, msPerRow: undefined });
    else if (known.msPerRow === undefined) known.msPerRow = msPerRow;
    else known.msPerRow += NEWEST_SHARE * (msPerRow - known.msPerRow);
  }

  /** Predicted milliseconds for one row; 0 before anything is known of the model. */
  msPerRow(model: string, shape: LatentShape): number {
    const area = shape.height * shape.width;
    let nearest: { area: number; msPerRow: number } | undefined;
    for (const { model: other, area: otherArea, msPerRow } of this.#learned.values()) {
      if (other !== model || msPerRow === undefined) continue;
      if (nearest === undefined || distance(otherArea, area) < distance(nearest.area, area)) {
        nearest = { area: otherArea, msPerRow };
      }
    }
    return nearest === undefined ? 0 : nearest.msPerRow * (area / nearest.area);
  }
}

/** How far two areas are from each other, by ratio. */
function distance(a: number, b: number): number {
  return Math.abs(Math.log(a / b));
}
