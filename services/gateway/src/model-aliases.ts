import type { WorkerView } from "./fleet/worker-view.ts";

/** Other names of models, so that programs find one under the name that they have always used. */
export class ModelAliases {
  readonly #models: ReadonlyMap<string, string | undefined>;

  /** @param models by the other name; undefined stands for the first model that the caller may use. */
  constructor(models: ReadonlyMap<string, string | undefined>) {
    this.#models = models;
  }

  /** The model that `name` means; undefined for the first. A model that has the name itself comes before an alias. */
  resolve(name: string | undefined, fleet: readonly WorkerView[]): string | undefined {
    if (name === undefined || !this.#models.has(name)) return name;
    return fleet.some(({ models }) => models.has(name)) ? name : this.#models.get(name);
  }

  /** The other names of the models of `catalog`, which are in the order that the caller has them in. */
  namesIn(catalog: readonly { readonly id: string }[]): readonly { readonly name: string; readonly model: string }[] {
    const ids = new Set(catalog.map(({ id }) => id));
    return [...this.#models].flatMap(([name, model = catalog[0]?.id]) =>
      model !== undefined && ids.has(model) && !ids.has(name) ? [{ name, model }] : [],
    );
  }
}
