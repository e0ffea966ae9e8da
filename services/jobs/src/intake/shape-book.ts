import { ServingError } from "@atelier/core";
import type { ItemShape } from "../job.ts";
import type { Completion, Gateway, JobCaller, ShapeDraft } from "../ports.ts";

/** A job's record holds its shapes, and a record is small. Somebody with more of them has several jobs. */
const SHAPES_MAX = 500;
const DRAFTS_AT_ONCE = 200;

export type CompletedDraft =
  | { readonly ok: true; readonly place: number; readonly shape: ItemShape }
  | { readonly ok: false; readonly code: string; readonly message: string; readonly field: string | null };

/** Prices and what is left, as the gateway said last. */
export type Terms = Omit<Completion, "shapes">;

/** The distinct shapes of a job: each draft is completed once, however many rows have it. */
export class ShapeBook {
  readonly #gateway: Pick<Gateway, "complete">;
  readonly #caller: JobCaller;
  readonly #signal: AbortSignal;
  readonly #completed = new Map<string, CompletedDraft>();
  readonly #places = new Map<string, number>();
  readonly shapes: ItemShape[] = [];
  #terms: Terms | undefined;

  constructor(gateway: Pick<Gateway, "complete">, caller: JobCaller, signal: AbortSignal) {
    this.#gateway = gateway;
    this.#caller = caller;
    this.#signal = signal;
  }

  get terms(): Terms | undefined {
    return this.#terms;
  }

  /** Asks for those that are not known yet. @throws ServingError where there are too many, or the gateway is away. */
  async complete(drafts: ReadonlyMap<string, ShapeDraft>): Promise<void> {
    const unknown = [...drafts].filter(([key]) => !this.#completed.has(key));
    for (let from = 0; from < unknown.length; from += DRAFTS_AT_ONCE) {
      this.#signal.throwIfAborted();
      const asked = unknown.slice(from, from + DRAFTS_AT_ONCE);
      const { shapes, ...terms } = await this.#gateway.complete(
        this.#caller,
        asked.map(([, draft]) => draft),
      );
      if (shapes.length !== asked.length) {
        throw new ServingError("INTERNAL", `the gateway completed ${shapes.length} of ${asked.length} drafts`);
      }
      this.#terms = terms;
      for (const [i, [key]] of asked.entries()) this.#note(key, shapes[i]!);
    }
  }

  of(key: string): CompletedDraft | undefined {
    return this.#completed.get(key);
  }

  #note(key: string, completed: Completion["shapes"][number]): void {
    if (this.#completed.size >= SHAPES_MAX) {
      const message = `the sheet has more than ${SHAPES_MAX} different combinations of model, size, steps and the like; send it as several jobs`;
      throw new ServingError("INVALID_REQUEST", message, { field: "sheet" });
    }
    if (!completed.ok) {
      this.#completed.set(key, completed);
      return;
    }
    // Drafts that say the same in different words are one shape.
    const same = JSON.stringify(completed.shape);
    let place = this.#places.get(same);
    if (place === undefined) {
      place = this.shapes.length;
      this.#places.set(same, place);
      this.shapes.push(completed.shape);
    }
    this.#completed.set(key, { ok: true, place, shape: completed.shape });
  }
}

const FIELDS: readonly (keyof ShapeDraft)[] = [
  "model",
  "width",
  "height",
  "steps",
  "guidance_scale",
  "sampler",
  "karras_sigmas",
  "format",
  "quality",
];

type Said = { readonly [field in keyof ShapeDraft]?: ShapeDraft[field] | undefined };

/** The later ones win. With the text that equal ones share. */
export function mergedDraft(...drafts: readonly (Said | undefined)[]): { key: string; draft: ShapeDraft } {
  const said = FIELDS.map((field) => [field, drafts.findLast((draft) => draft?.[field] !== undefined)?.[field]]);
  const merged = said.filter(([, value]) => value !== undefined);
  return { key: JSON.stringify(merged), draft: Object.fromEntries(merged) as ShapeDraft };
}
