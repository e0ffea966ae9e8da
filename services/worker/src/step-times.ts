import type { LatentShape } from "@atelier/diffusion";

/** How much the newest run counts: about the last ten runs decide. */
const NEWEST_SHARE = 0.2;
/** A run slower than this many times what is known counts as so many: one hiccup of the machine is not the device. */
const OUTLIER_MAX = 3;
/** Share of a run's time that is taken not to grow with its rows where only one size is known: enough to try more. */
const FIXED_SHARE = 0.3;
/**
 * How time falls with a lane's threads where one kind of lane has not been tried: four threads took half the time of one
 * (0.5) on the U-Nets measured; less makes sure that it is tried.
 */
const THREADS_POWER = 0.35;
/** Runs of a shape after which what was learned of a size that was not among them counts half, and no less. */
const STALE_RUNS = 5000;

/** One U-Net run. */
export interface StepRun {
  readonly model: string;
  readonly shape: LatentShape;
  readonly rows: number;
  readonly ms: number;
  /** CPU threads of the lane; 0 on a device that has one lane. */
  readonly threads: number;
  /** Which of the device's lanes it was: each allocates at its first run. */
  readonly lane: string;
  /** Lanes that can run beside one another as this one did: the run took a share of 1 / lanes of the device. */
  readonly lanes: number;
}

/** What the table knows of one size of run. */
export interface StepTime {
  readonly model: string;
  readonly height: number;
  readonly width: number;
  readonly threads: number;
  readonly rows: number;
  readonly ms: number;
}

/** Milliseconds of the whole device that one row took lately: see `msPerRow`. */
export interface RowTime {
  readonly model: string;
  readonly height: number;
  readonly width: number;
  readonly ms: number;
}

/** What is known of one shape on one kind of lane: milliseconds by rows. */
interface Curve {
  readonly model: string;
  readonly height: number;
  readonly width: number;
  readonly threads: number;
  readonly points: Map<number, Point>;
}

interface Point {
  readonly ms: number;
  /** How many runs of the shape there had been when it was last met. */
  readonly atRun: number;
}

/** Milliseconds that a point stands for after so many runs of its shape. */
type MsOf = (point: Point, runs: number) => number;

/**
 * How long U-Net runs take, learned for each model, latent shape, kind of lane and number of rows.
 *
 * The first run of a size on a lane is left out: it allocates, and would be believed for a long time. Sizes not met yet
 * are predicted from those that were, in this order of trust: other numbers of rows of the same shape (straight lines
 * between what is known), other kinds of lane, other shapes (a row of twice the area counts as two rows).
 *
 * `hopefulRunMs` takes a size that is not used to become cheaper, little by little: where the choice is between kinds of
 * lane, what was once learned in a bad moment is tried again, the sooner the less there is to lose.
 */
export class StepTimes {
  readonly #curves = new Map<string, Curve>();
  readonly #runsOfShape = new Map<string, number>();
  /** Sizes that have run in this process, by lane. */
  readonly #met = new Set<string>();
  /** Device milliseconds that a row took lately, by model and shape: see `msPerRow`. */
  readonly #perRow = new Map<string, RowTime>();

  observe({ model, shape, rows, ms, threads, lane, lanes }: StepRun): void {
    const size = `${model} ${lane} ${shape.height}x${shape.width} ${rows}`;
    if (!this.#met.has(size)) {
      this.#met.add(size);
      return;
    }
    const curve = this.#curveOf(model, shape.height, shape.width, threads);
    const key = shapeKey(model, shape.height, shape.width);
    const atRun = this.#runs(key) + 1;
    this.#runsOfShape.set(key, atRun);
    const known = curve.points.get(rows);
    curve.points.set(rows, { ms: known === undefined ? ms : averaged(known.ms, ms), atRun });

    const msPerRow = ms / lanes / rows;
    const { height, width } = shape;
    const before = this.#perRow.get(key);
    this.#perRow.set(key, {
      model,
      height,
      width,
      ms: before === undefined ? msPerRow : averaged(before.ms, msPerRow),
    });
  }

  /** Predicted milliseconds of one run; 0 before anything is known of the model. */
  runMs(model: string, shape: LatentShape, threads: number, rows: number): number {
    return this.#predict({ model, shape, threads, rows }, ({ ms }) => ms);
  }

  /** The same, but that a size counts the less the longer it has not been used, down to half. */
  hopefulRunMs(model: string, shape: LatentShape, threads: number, rows: number): number {
    return this.#predict(
      { model, shape, threads, rows },
      ({ ms, atRun }, runs) => ms * Math.max(0.5, 0.5 ** ((runs - atRun) / STALE_RUNS)),
    );
  }

  #predict(run: Pick<StepRun, "model" | "shape" | "threads" | "rows">, msOf: MsOf): number {
    const { model, shape, threads, rows } = run;
    const { height, width } = shape;
    const same = this.#curves.get(curveKey(model, height, width, threads));
    if (same !== undefined && same.points.size > 0) return this.#along(same, rows, msOf);

    let nearest: Curve | undefined;
    let nearestBy = Infinity;
    for (const curve of this.#curves.values()) {
      if (curve.model !== model || curve.points.size === 0) continue;
      const otherThreads = threads === curve.threads ? 0 : 1;
      const by = Math.abs(Math.log((height * width) / (curve.height * curve.width))) + otherThreads;
      if (by < nearestBy) [nearest, nearestBy] = [curve, by];
    }
    if (nearest === undefined) return 0;
    const likeRows = (rows * height * width) / (nearest.height * nearest.width);
    const slower = threads > 0 && nearest.threads > 0 ? (nearest.threads / threads) ** THREADS_POWER : 1;
    return slower * this.#along(nearest, likeRows, msOf);
  }

  /**
   * Milliseconds of the whole device that one row took lately, batching and lanes side by side counted in: what a
   * backlog is made of. 0 before anything is known of the model. Shapes not met yet are taken in proportion to their
   * area from the nearest that was.
   */
  msPerRow(model: string, shape: LatentShape): number {
    const area = shape.height * shape.width;
    const same = this.#perRow.get(shapeKey(model, shape.height, shape.width));
    if (same !== undefined) return same.ms;
    let nearest: RowTime | undefined;
    for (const other of this.#perRow.values()) {
      if (other.model !== model) continue;
      if (nearest === undefined || distance(areaOf(other), area) < distance(areaOf(nearest), area)) nearest = other;
    }
    return nearest === undefined ? 0 : nearest.ms * (area / areaOf(nearest));
  }

  /** What `msPerRow` goes by. */
  get rowTimes(): readonly RowTime[] {
    return [...this.#perRow.values()];
  }

  /** The whole table. */
  toJSON(): readonly StepTime[] {
    return [...this.#curves.values()].flatMap(({ model, height, width, threads, points }) =>
      [...points].map(([rows, { ms }]) => ({ model, height, width, threads, rows, ms })),
    );
  }

  /** A table with what another one knew; the first run of each size in this process is left out all the same. */
  static fromJSON(known: readonly StepTime[]): StepTimes {
    const times = new StepTimes();
    for (const { model, height, width, threads, rows, ms } of known) {
      times.#curveOf(model, height, width, threads).points.set(rows, { ms, atRun: 0 });
      // Until it runs: the best that one run alone could do.
      const key = shapeKey(model, height, width);
      const before = times.#perRow.get(key)?.ms ?? Infinity;
      times.#perRow.set(key, { model, height, width, ms: Math.min(before, ms / rows) });
    }
    return times;
  }

  #runs(key: string): number {
    return this.#runsOfShape.get(key) ?? 0;
  }

  /** Milliseconds at `rows`, which need not be whole. */
  #along({ model, height, width, points }: Curve, rows: number, msOf: MsOf): number {
    const runs = this.#runs(shapeKey(model, height, width));
    return along(
      [...points].map(([at, point]) => [at, msOf(point, runs)] as const),
      rows,
    );
  }

  #curveOf(model: string, height: number, width: number, threads: number): Curve {
    const key = curveKey(model, height, width, threads);
    const known = this.#curves.get(key);
    if (known !== undefined) return known;
    const curve: Curve = { model, height, width, threads, points: new Map() };
    this.#curves.set(key, curve);
    return curve;
  }
}

/**
 * Reads a curve at `rows`, which need not be whole: on the straight lines between its points, and on the last of them
 * beyond the largest. What has not been tried is hoped to be cheap, so that it is tried: below the least point time is
 * in proportion to the rows, and above a single one a part of it is fixed. More rows never take less time, whatever
 * noise says.
 */
function along(points: (readonly [number, number])[], rows: number): number {
  let below: readonly [number, number] | undefined;
  let lower: readonly [number, number] | undefined; // the next below `below`
  let above: readonly [number, number] | undefined;
  for (const point of points.sort(([a], [b]) => a - b)) {
    if (point[0] === rows) return point[1];
    if (point[0] > rows) {
      above = point;
      break;
    }
    [lower, below] = [below, point];
  }
  if (below === undefined) return (above![1] * rows) / above![0];
  if (above !== undefined) return Math.max(below[1], onLine(below, above, rows));
  if (lower === undefined) return below[1] * (FIXED_SHARE + (1 - FIXED_SHARE) * (rows / below[0]));
  return Math.max(below[1], onLine(lower, below, rows));
}

function onLine([x1, y1]: readonly [number, number], [x2, y2]: readonly [number, number], x: number): number {
  return y1 + ((y2 - y1) * (x - x1)) / (x2 - x1);
}

function averaged(known: number, newest: number): number {
  return known + NEWEST_SHARE * (Math.min(newest, OUTLIER_MAX * known) - known);
}

function shapeKey(model: string, height: number, width: number): string {
  return `${model} ${height}x${width}`;
}

function curveKey(model: string, height: number, width: number, threads: number): string {
  return `${model} ${height}x${width} ${threads}`;
}

function areaOf({ height, width }: RowTime): number {
  return height * width;
}

/** How far two areas are from each other, by ratio. */
function distance(a: number, b: number): number {
  return Math.abs(Math.log(a / b));
}
