import { PRIORITY_CLASSES } from "../caller.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { Prediction } from "../placement/placer.ts";

/** Predictions are medians, and more urgent work may come in between. */
const PATIENCE = 3;
/** A worker that its state stream has given up as well has been silent for ten seconds there already. */
const UNHEARD_MS = 2_000;

/**
 * Milliseconds for which a worker may say nothing of a request before it counts as hanging. Whoever waits behind others
 * hears nothing for as long as those take; one whose model is being loaded, until that ends.
 *
 * `view` is what is known of the worker now; undefined when it has left the fleet.
 */
export function allowedSilenceMs(
  model: string,
  predicted: Pick<Prediction, "waitMs">,
  view: WorkerView | undefined,
  floorMs: number,
): number {
  if (view === undefined) return Math.max(floorMs, PATIENCE * predicted.waitMs);
  if (!view.heard) return Math.min(floorMs, UNHEARD_MS);
  const place = view.models.get(model)?.place;
  if (place?.status === "loading") return Number.POSITIVE_INFINITY; // a load has a deadline of its own
  const backlogMs = PRIORITY_CLASSES.reduce((sum, priority) => sum + view.backlogMs[priority], 0);
  const loadMs = place?.status === "on_disk" ? place.loadMs : 0;
  return Math.max(floorMs, PATIENCE * (Math.max(predicted.waitMs, backlogMs) + loadMs));
}
