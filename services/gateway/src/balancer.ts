import { type Random, ServingError } from "@atelier/core";
import { PLACE_STATUSES, type WorkerView } from "./fleet/worker-view.ts";

/**
 * Chooses the worker for a request: the one with the fewest of this gateway's requests in flight, among those that are
 * ready and have the model in memory; where none has, those that are loading it, and then those that have it on disk.
 * Ties are drawn, or every gateway would start at the first name of the list.
 */
export class Balancer {
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
  }

  /** @throws ServingError NO_WORKER naming what is missing. */
  pick(request: { readonly model: string }, fleet: readonly WorkerView[]): WorkerView {
    const ready = fleet.filter((worker) => worker.ready && !worker.draining);
    if (ready.length === 0) throw new ServingError("NO_WORKER", notReadyMessage(fleet));
    const holding = ready.filter((worker) => worker.models.has(request.model));
    if (holding.length === 0) {
      throw new ServingError(
        "NO_WORKER",
        `none of the ${ready.length} ready workers holds the model "${request.model}"`,
      );
    }

    const statusAt = (worker: WorkerView) => worker.models.get(request.model)?.place.status;
    const best = PLACE_STATUSES.find((status) => holding.some((worker) => statusAt(worker) === status));
    const eligible = holding.filter((worker) => statusAt(worker) === best);
    const fewest = Math.min(...eligible.map((worker) => worker.inFlight));
    const tied = eligible.filter((worker) => worker.inFlight === fewest);
    return tied[Math.floor(this.#random.next() * tied.length)]!;
  }
}

/** Why nobody takes requests, worker by worker; a long fleet is cut short. */
export function notReadyMessage(fleet: readonly WorkerView[]): string {
  const shown = fleet.slice(0, 4).map((worker) => `${worker.id}: ${worker.notReadyReason}`);
  if (fleet.length > shown.length) shown.push(`and ${fleet.length - shown.length} more`);
  return `no worker is ready (${shown.join("; ") || "none is known"})`;
}
