import type { Balancer } from "../balancer.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type { ImageRequest } from "../image-request.ts";
import type { PlaceLimits, Placement, Placer, Prediction } from "./placer.ts";

/** Places each request at once, where the balancer says. */
export class FleetPlacer implements Placer {
  readonly #fleet: Fleet;
  readonly #balancer: Balancer;

  constructor(fleet: Fleet, balancer: Balancer) {
    this.#fleet = fleet;
    this.#balancer = balancer;
  }

  predict(image: ImageRequest): Prediction {
    this.#balancer.pick(image, this.#fleet.views());
    return { waitMs: 0, workMs: 0 };
  }

  async place(image: ImageRequest, { deadline, signal, avoid }: PlaceLimits): Promise<Placement> {
    signal.throwIfAborted();
    deadline.check("placing the request on a worker");
    const views = this.#fleet.views();
    const fresh = views.filter((view) => !avoid.has(view.address));
    const worker = this.#balancer.pick(image, fresh.some((view) => view.ready) ? fresh : views);
    const { client, release } = this.#fleet.place(worker.address);
    return { worker, client, predicted: { waitMs: 0, workMs: 0 }, accepted: () => {}, release };
  }
}
