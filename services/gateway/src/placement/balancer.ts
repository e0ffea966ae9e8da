import { type Random, ServingError } from "@atelier/core";
import { PRIORITY_CLASSES } from "../caller.ts";
import { notReadyMessage } from "../fleet/not-ready.ts";
import type { ModelView, WorkerView } from "../fleet/worker-view.ts";
import type { ServiceOrder } from "../generations/ports.ts";
import type { ImageRequest } from "../image-request.ts";
import { denoiseWork } from "./denoise-work.ts";
import type { Prediction } from "./placer.ts";

/** A worker and what it would come to there. */
export interface Choice {
  readonly worker: WorkerView;
  readonly predicted: Prediction;
  /** When it is finished there, and what that costs those whom it passes. */
  readonly costMs: number;
}

/**
 * Finishing within so many milliseconds of each other, or within this share of the request's own work, is finishing at the
 * same time: learned times differ by as much between equal workers, and every gateway would send all it has to the one that
 * seems a hair faster.
 */
const TIE_MS = 1;
const TIE_SHARE = 0.1;
/**
 * What a request costs those whom it passes, against what it waits itself. More than 1, since whoever is passed once will
 * be passed again. The simulation's p99 slowdown is the same from 2 to 4, and a tenth worse at 1.
 */
const PASSED_WEIGHT = 2;
/** Among workers that would finish it alike, the one with less to do: long jobs, which are passed, are spread by it. */
const BACKLOG_WEIGHT = 0.1;
/** A row of the native size on a worker of which nothing is known, nor of its like: it is tried, and then known. */
const UNKNOWN_ROW_MS = 25;

/**
 * Chooses the worker that will finish a request first, by prediction: what goes before it there, the load of the model
 * where it is not in memory, and then the request itself. What goes before is all that is more urgent and, since workers
 * go on with whoever has the least left, the shorter jobs of its class; what it would cost the longer ones counts too, or
 * short requests would all gather behind the same long one.
 *
 * Looks at all workers rather than at a few that are drawn: what is known of them is at most 50 ms old and has the
 * gateway's own placements in it. docs/decisions/0008-placement.md has the figures. Ties are drawn, or every gateway
 * would start at the first name of the list.
 */
export class Balancer {
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
  }

  /** @throws ServingError NO_WORKER naming what is missing. */
  pick(image: ImageRequest, order: Pick<ServiceOrder, "priority">, fleet: readonly WorkerView[]): Choice {
    const choices = this.choices(image, order, fleet);
    const least = choices.reduce((best, each) => (each.costMs < best.costMs ? each : best));
    const limitMs = least.costMs + Math.max(TIE_MS, TIE_SHARE * least.predicted.workMs);
    const tied = choices.filter(({ costMs }) => costMs <= limitMs);
    return tied[Math.floor(this.#random.next() * tied.length)]!;
  }

  /** What it would come to on each worker that could take it. @throws ServingError NO_WORKER naming what is missing. */
  choices(
    image: ImageRequest,
    order: Pick<ServiceOrder, "priority">,
    fleet: readonly WorkerView[],
  ): readonly [Choice, ...Choice[]] {
    const ready = fleet.filter((worker) => worker.ready && !worker.draining);
    if (ready.length === 0) throw new ServingError("NO_WORKER", notReadyMessage(fleet));
    const holding = ready.flatMap((worker) => {
      const model = worker.models.get(image.model);
      return model === undefined ? [] : [{ worker, model, ...timesOf(image, worker, model) }];
    });
    const guessMs = guessOf(holding, image);
    const measured = holding.some(({ deviceMs }) => deviceMs !== undefined);
    const choices = holding.map(({ worker, model, deviceMs = guessMs, aloneMs = guessMs }) => {
      const loadMs = loadLeftMs(model);
      const { aheadMs, passedShare, allMs } = queueOf(worker, order, deviceMs / image.numImages);
      const waitMs = loadMs + aheadMs;
      // Among others it costs its share of the batches; on an idle worker it cannot be faster than alone.
      const finishMs = Math.max(waitMs + deviceMs, loadMs + aloneMs);
      const costMs = finishMs + PASSED_WEIGHT * deviceMs * passedShare + BACKLOG_WEIGHT * allMs;
      return { worker, predicted: { waitMs, workMs: deviceMs, finishMs, measured }, costMs };
    });
    const [first, ...rest] = choices;
    if (first !== undefined) return [first, ...rest];
    throw new ServingError("NO_WORKER", `none of the ${ready.length} ready workers holds the model "${image.model}"`);
  }
}

/**
 * What a request of jobs of `jobMs` each would wait for: all that is more urgent, and within its class whoever has less
 * left. The others of its class it passes: `passedShare` is the sum of how much slower each of them becomes, as a share of
 * what it has left. `allMs` is all the work of its class and of more urgent ones.
 */
function queueOf(worker: WorkerView, { priority }: Pick<ServiceOrder, "priority">, jobMs: number) {
  let aheadMs = 0;
  let passedShare = 0;
  let allMs = 0;
  for (const each of PRIORITY_CLASSES) {
    for (const leftMs of worker.jobsLeftMs[each]) {
      allMs += leftMs;
      if (each !== priority || !worker.shortestFirst || leftMs <= jobMs) aheadMs += leftMs;
      else passedShare += jobMs / leftMs;
    }
    if (each === priority) break;
  }
  return { aheadMs, passedShare, allMs };
}

function loadLeftMs({ place }: ModelView): number {
  if (place.status === "resident") return 0;
  return place.loadMs * (1 - (place.status === "loading" ? place.progress : 0));
}

function timesOf(image: ImageRequest, worker: WorkerView, model: ModelView) {
  const work = denoiseWork(image, model);
  return { deviceMs: worker.costs.deviceMs(work), aloneMs: worker.costs.aloneMs(work) };
}

/** Where a worker has not run the model yet: what the others take on average, or else a round figure. */
function guessOf(holding: readonly { model: ModelView; deviceMs: number | undefined }[], image: ImageRequest): number {
  const known = holding.flatMap(({ deviceMs }) => (deviceMs === undefined ? [] : [deviceMs]));
  if (known.length > 0) return known.reduce((sum, ms) => sum + ms, 0) / known.length;
  const model = holding[0]?.model;
  if (model === undefined) return 0;
  const { nativeWidth, nativeHeight } = model.defaults;
  const { rows, images, passes } = denoiseWork(image, model);
  const nativeArea = (nativeWidth * nativeHeight) / 64;
  return passes.reduce((sum, { area, steps }) => sum + (steps * rows * images * UNKNOWN_ROW_MS * area) / nativeArea, 0);
}
