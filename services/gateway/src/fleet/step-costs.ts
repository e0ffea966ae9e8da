import type { RowTime, StepTime, WorkerState } from "@atelier/proto";
import type { ModelView } from "./worker-view.ts";

/** What a request asks of a U-Net. */
export interface DenoiseWork {
  readonly model: string;
  /** Of one image's step: two with guidance, one without. */
  readonly rows: number;
  readonly images: number;
  readonly passes: readonly DenoisePass[];
}

export interface DenoisePass {
  /** Latent places: height x width of the latent. */
  readonly area: number;
  readonly steps: number;
}

/** Share of a run's time that does not grow with its rows, where only one number of rows is known. */
const FIXED_SHARE = 0.3;

/**
 * What a worker has learned of its U-Net's times, and what follows for a request. Sizes that it never met are taken from
 * the nearest that it did, in proportion to their area; before it has met any, from its own word on the native size.
 */
export class StepCosts {
  readonly #rowTimes = new Map<string, { area: number; ms: number }[]>();
  readonly #curves = new Map<string, Curve[]>();

  constructor({ rowTimes, stepTimes }: Pick<WorkerState, "rowTimes" | "stepTimes">, models: Iterable<ModelView> = []) {
    for (const { model, height, width, ms } of rowTimes)
      if (isTime(ms)) listIn(this.#rowTimes, model).push({ area: height * width, ms });
    for (const { model, height, width, threads, rows, ms } of stepTimes) {
      if (!isTime(ms) || rows < 1) continue;
      const curves = listIn(this.#curves, model);
      const area = height * width;
      const same = curves.find((curve) => curve.area === area && curve.threads === threads);
      if (same === undefined) curves.push({ area, threads, points: [{ rows, ms }] });
      else same.points.push({ rows, ms });
    }
    for (const curves of this.#curves.values()) for (const { points } of curves) points.sort((a, b) => a.rows - b.rows);
    for (const { id, stepMs, defaults } of models) {
      if (!isTime(stepMs) || this.#rowTimes.has(id)) continue;
      const area = (defaults.nativeWidth / VAE_SCALE) * (defaults.nativeHeight / VAE_SCALE);
      this.#rowTimes.set(id, [{ area, ms: stepMs / 2 }]);
    }
  }

  /**
   * Milliseconds of the whole device by which the work adds to the worker's backlog, as the worker itself will count it.
   * Undefined where it knows nothing of the model.
   */
  deviceMs({ model, rows, images, passes }: DenoiseWork): number | undefined {
    const known = this.#rowTimes.get(model);
    if (known === undefined) return undefined;
    return sum(passes, ({ area, steps }) => {
      const near = nearest(known, area);
      return steps * rows * images * near.ms * (area / near.area);
    });
  }

  /** Milliseconds from its first step to its last on a worker that does nothing else; undefined as above. */
  aloneMs(work: DenoiseWork): number | undefined {
    const curves = this.#curves.get(work.model);
    if (curves === undefined) return this.deviceMs(work);
    return sum(work.passes, ({ area, steps }) => {
      const { area: known } = nearest(curves, area);
      // Of a device with several kinds of lane, the one that is best for a single request.
      const runs = curves.filter((curve) => curve.area === known);
      const likeRows = (work.rows * work.images * area) / known;
      return steps * Math.min(...runs.map(({ points }) => along(points, likeRows)));
    });
  }
}

/** Pixels on each side of a latent place. */
const VAE_SCALE = 8;

interface Curve {
  readonly area: number;
  readonly threads: number;
  readonly points: Pick<StepTime, "rows" | "ms">[];
}

function isTime(ms: number): boolean {
  return Number.isFinite(ms) && ms > 0;
}

/** Straight lines between what is known; in proportion below it, and less than that above a single point. */
function along(points: readonly Pick<StepTime, "rows" | "ms">[], rows: number): number {
  const first = points[0]!;
  const last = points.at(-1)!;
  if (rows <= first.rows) return (first.ms * rows) / first.rows;
  const above = points.findIndex((point) => point.rows >= rows);
  if (above > 0) return onLine(points[above - 1]!, points[above]!, rows);
  if (points.length === 1) return last.ms * (FIXED_SHARE + (1 - FIXED_SHARE) * (rows / last.rows));
  return Math.max(last.ms, onLine(points.at(-2)!, last, rows));
}

function onLine(a: Pick<StepTime, "rows" | "ms">, b: Pick<StepTime, "rows" | "ms">, rows: number): number {
  return a.ms + ((b.ms - a.ms) * (rows - a.rows)) / (b.rows - a.rows);
}

function nearest<Of extends { readonly area: number }>(known: readonly Of[], area: number): Of {
  const distance = (other: Of) => Math.abs(Math.log(other.area / area));
  return known.reduce((best, each) => (distance(each) < distance(best) ? each : best));
}

function sum<Item>(items: readonly Item[], ms: (item: Item) => number): number {
  return items.reduce((total, item) => total + ms(item), 0);
}

function listIn<Item>(lists: Map<string, Item[]>, key: string): Item[] {
  const known = lists.get(key);
  if (known !== undefined) return known;
  const list: Item[] = [];
  lists.set(key, list);
  return list;
}

/** Of a worker that has told nothing. */
export const NO_COSTS = new StepCosts({ rowTimes: [] as RowTime[], stepTimes: [] });
