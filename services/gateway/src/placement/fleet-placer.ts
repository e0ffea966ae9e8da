import type { Fleet } from "../fleet/fleet.ts";
import type { ServiceOrder } from "../generations/ports.ts";
import type { ImageRequest } from "../image-request.ts";
import type { Balancer } from "./balancer.ts";
import type { PlaceLimits, Placement, Placer, Prediction } from "./placer.ts";

/** Places each request at once, where the balancer says. */
export class FleetPlacer implements Placer {
  readonly #fleet: Pick<Fleet, "views" | "place">;
  readonly #balancer: Balancer;

  constructor(fleet: Pick<Fleet, "views" | "place">, balancer: Balancer) {
    this.#fleet = fleet;
    this.#balancer = balancer;
  }

  predict(image: ImageRequest, order: ServiceOrder): Prediction {
    return this.#balancer.pick(image, order, this.#fleet.views()).predicted;
  }

  async place(image: ImageRequest, { order, deadline, signal, avoid }: PlaceLimits): Promise<Placement> {
    signal.throwIfAborted();
    deadline.check("placing the request on a worker");
    const views = this.#fleet.views();
    const others = views.filter(({ address, models }) => !avoid.has(address) && models.has(image.model));
    const eligible = others.some((view) => view.ready) ? others : views;
    const { worker, predicted } = this.#balancer.pick(image, order, eligible);
    const slot = this.#fleet.place(worker.address, { priority: order.priority, ms: predicted.workMs });
    return { worker, predicted, client: slot.client, accepted: slot.accepted, release: () => slot.release() };
  }
}
