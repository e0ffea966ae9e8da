import { ServingError, toServingError } from "@atelier/core";
import { type Bundle, readBundle } from "./bundle/index.ts";
import type { NetworkBytes } from "./memory/activations.ts";
import { networkBytes } from "./memory/file-bytes.ts";
import { Plans } from "./plans.ts";
import { type RequestLimits, requestLimits } from "./request.ts";

/** A bundle that was read, as the pipeline uses it. */
export interface Model {
  readonly bundle: Bundle;
  readonly limits: RequestLimits;
  readonly plans: Plans;
  readonly fileBytes: NetworkBytes;
}

/**
 * Reads every folder.
 *
 * @throws ServingError INVALID_BUNDLE with everything that is wrong with any of them in one message.
 */
export async function readModels(dirs: readonly string[]): Promise<ReadonlyMap<string, Model>> {
  const read = await Promise.allSettled(dirs.map((dir) => readBundle(dir, { lenderDirs: dirs })));
  const bundles = read.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
  const errors = read.flatMap((outcome) => (outcome.status === "rejected" ? [outcome.reason as unknown] : []));
  const models = new Map<string, Model>();
  for (const bundle of bundles) {
    const other = models.get(bundle.id);
    if (other !== undefined) errors.push(twice(bundle, other.bundle));
    else models.set(bundle.id, await modelOf(bundle));
  }
  if (errors.length > 0) throw allOf(errors);
  return models;
}

async function modelOf(bundle: Bundle): Promise<Model> {
  const fileBytes = await networkBytes(bundle);
  return { bundle, limits: requestLimits(bundle.manifest), plans: new Plans(bundle.scheduler), fileBytes };
}

/** Several failures as one: the code of the first, every message, one a line. */
export function allOf(errors: readonly unknown[]): ServingError {
  const failures = errors.map(toServingError);
  const [first] = failures;
  if (failures.length === 1) return first!;
  const messages = [...new Set(failures.map(({ detail }) => detail))];
  return new ServingError(first!.code, messages.join("\n"), { cause: first });
}

function twice(bundle: Bundle, other: Bundle): ServingError {
  return new ServingError("INVALID_BUNDLE", `two bundles have the id "${bundle.id}": ${other.dir} and ${bundle.dir}`);
}
