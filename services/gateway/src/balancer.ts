import { type Random, ServingError } from "@atelier/core";
import type { WorkerView } from "./fleet/worker-view.ts";

/**
 * Chooses the worker for a request: the one with the fewest of this gateway's requests in flight, among those that are
 * ready and hold the model. Ties are drawn, or every gateway would start at the first name of the list.
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

    const fewest = Math.min(...holding.map((worker) => worker.inFlight));
    const tied = holding.filter((worker) => worker.inFlight === fewest);
    return tied[Math.floor(this.#random.next() * tied.length)]!;
  }
}

/** Why nobody takes requests, worker by worker; a long fleet is cut short. */
export function notReadyMessage(fleet: readonly WorkerView[]): string {
  const shown = fleet.slice(0, 4).map((worker) => `${worker.id}: ${worker.notReadyReason}`);
  if (fleet.length > shown.length) shown.push(`and ${fleet.length - shown.length} more`);
  return `no worker is ready (${shown.join("; ") || "none is known"})`;
}
