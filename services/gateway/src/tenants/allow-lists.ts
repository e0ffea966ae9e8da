import { ServingError } from "@atelier/core";
import { showValue } from "@atelier/http";
import type { Caller } from "../caller.ts";
import { type CatalogModel, catalogOf } from "../catalog.ts";
import type { WorkerView } from "../fleet/worker-view.ts";

type Lists = Pick<Caller, "models" | "adapters">;

/** The fleet as the caller may see it: models that it may not use are not there. */
export function viewsFor({ models }: Pick<Caller, "models">, views: readonly WorkerView[]): readonly WorkerView[] {
  if (models === undefined) return views;
  return views.map((view) => ({ ...view, models: new Map([...view.models].filter(([id]) => models.has(id))) }));
}

/** The models that the caller may use. */
export function catalogFor(caller: Pick<Caller, "models">, views: readonly WorkerView[]): readonly CatalogModel[] {
  return catalogOf(viewsFor(caller, views));
}

/**
 * Before anything is looked up: that a model is served here is nothing to tell those who may not use it.
 *
 * @throws ServingError FORBIDDEN naming the model or adapter.
 */
export function checkAllowed(
  { models, adapters }: Lists,
  asked: { readonly model: string | undefined; readonly adapters?: readonly { readonly name: string }[] | undefined },
): void {
  if (models !== undefined && asked.model !== undefined && !models.has(asked.model)) {
    throw refusal("model", asked.model, models);
  }
  // The default model is the first that the caller may see: with an empty list there is none.
  if (models?.size === 0) throw new ServingError("FORBIDDEN", "this key may use no model", { field: "model" });
  const adapter = asked.adapters?.find(({ name }) => adapters !== undefined && !adapters.has(name));
  if (adapter !== undefined) throw refusal("loras", adapter.name, adapters!);
}

const LISTED_MAX = 10;

function refusal(field: "model" | "loras", name: string, allowed: ReadonlySet<string>): ServingError {
  const list = [...allowed].slice(0, LISTED_MAX).join(", ") + (allowed.size > LISTED_MAX ? ", ..." : "");
  const message = `${field} names ${showValue(name)}, which this key may not use; it may use ${list || "none"}`;
  return new ServingError("FORBIDDEN", message, { field });
}
