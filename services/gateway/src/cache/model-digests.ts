import { catalogOf } from "../catalog.ts";
import type { Fleet } from "../fleet/fleet.ts";

/** The digest of each model's bundle, as the fleet offers it; worked out anew when the fleet changes. */
export class ModelDigests {
  readonly #fleet: Pick<Fleet, "views">;
  #known: ReadonlyMap<string, string> | undefined;

  constructor(fleet: Pick<Fleet, "views" | "onChange">) {
    this.#fleet = fleet;
    fleet.onChange(() => {
      this.#known = undefined;
    });
  }

  /** Undefined for a model that no worker was ever heard to have. */
  of(model: string): string | undefined {
    this.#known ??= new Map(catalogOf(this.#fleet.views()).map(({ id, digest }) => [id, digest]));
    return this.#known.get(model);
  }
}
