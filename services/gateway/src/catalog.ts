import { ServingError } from "@atelier/core";
import { notReadyMessage } from "./fleet/not-ready.ts";
import { type ModelPlace, type ModelView, PLACE_STATUSES, type WorkerView } from "./fleet/worker-view.ts";

/** A model as the fleet offers it. */
export interface CatalogModel extends ModelView {
  /** Ready workers that hold it. */
  readonly workersReady: number;
}

/** Every model that the fleet is known to have, in memory or on disk, in the order of its workers; those of lost workers too, with none ready. */
export function catalogOf(fleet: readonly WorkerView[]): readonly CatalogModel[] {
  const found = new Map<string, CatalogModel>();
  // What a ready worker says of a model comes before what a lost one said.
  for (const worker of [...fleet].sort((a, b) => Number(b.ready) - Number(a.ready))) {
    for (const model of worker.models.values()) {
      const workersReady = (found.get(model.id)?.workersReady ?? 0) + (worker.ready ? 1 : 0);
      const known = found.get(model.id) ?? model;
      // The best place among ready workers; a lost one's counts only where there is no other.
      const place = worker.ready && betterPlace(model.place, known.place) ? model.place : known.place;
      found.set(model.id, { ...known, place, workersReady });
    }
  }
  const order = fleet.flatMap((worker) => [...worker.models.keys()]);
  return [...found.values()].sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
}

function betterPlace(a: ModelPlace, b: ModelPlace): boolean {
  return PLACE_STATUSES.indexOf(a.status) < PLACE_STATUSES.indexOf(b.status);
}

/**
 * The model that a request names; the first of the fleet when it names none.
 *
 * @throws ServingError MODEL_NOT_FOUND listing the models there are, NO_WORKER when none was heard of yet.
 */
export function findModel(fleet: readonly WorkerView[], id: string | undefined): CatalogModel {
  const catalog = catalogOf(fleet);
  const first = catalog[0];
  if (first === undefined) throw new ServingError("NO_WORKER", notReadyMessage(fleet));
  if (id === undefined) return first;
  const model = catalog.find((candidate) => candidate.id === id);
  if (model !== undefined) return model;
  const known = catalog.map((candidate) => candidate.id).join(", ");
  throw new ServingError("MODEL_NOT_FOUND", `model ${show(id)} is not served here; known models: ${known}`, {
    field: "model",
  });
}

function show(id: string): string {
  return JSON.stringify(id.length > 60 ? `${id.slice(0, 60)}...` : id);
}
