import { type Clock, type Random, ServingError } from "@atelier/core";
import { currentSpan, type Logger, traced } from "@atelier/telemetry";
import { backoffMs } from "../fleet/backoff.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { MakeLimits } from "../generations/ports.ts";
import type { Generation, ImageRequest } from "../image-request.ts";
import type { Placement, Placer } from "../placement/placer.ts";
import { Attempt, type Failed, type Making, SUPERSEDED } from "./attempt.ts";
import type { ByteBudget } from "./byte-budget.ts";
import type { DispatchMetrics } from "./dispatch-metrics.ts";
import { remedyFor } from "./failure.ts";
import { Gathering } from "./gathering.ts";
import { RetryBudget } from "./retry-budget.ts";
import { sleep } from "./sleep.ts";
import type { Slice } from "./slice.ts";
import { Slowness } from "./slowness.ts";

export interface DispatchLimits {
  /** Calls that may fail before the failure is the caller's; a worker that leaves in order does not count. */
  readonly attemptsMax: number;
  /** Retries and hedges over all requests, as a share of them in the long run. */
  readonly retryShare: number;
  /** Retries and hedges that may be saved up. */
  readonly retriesMax: number;
  /** How long a request whose worker is lost waits for another, at most; never more than half of its time left. */
  readonly retryWaitMs: number;
  /** The least silence after which a worker counts as hanging. */
  readonly stallMs: number;
  /** Steps between checkpoints; undefined: by size and steps. */
  readonly checkpointEvery: number | undefined;
  /** Second attempts beside stragglers: never, when they are slower than 99 of 100, or at a multiple of the prediction. */
  readonly hedge: "off" | "learned" | number;
}

export interface DispatcherOptions {
  readonly placer: Placer;
  readonly fleet: { views(): readonly WorkerView[] };
  readonly clock: Clock;
  readonly random: Random;
  readonly limits: DispatchLimits;
  /** For states of half-finished pictures. */
  readonly checkpoints: ByteBudget;
  readonly metrics: DispatchMetrics;
  readonly log: Pick<Logger, "info">;
}

/** What a slice's attempts so far have come to. */
interface Tried {
  /** Calls that were accepted and failed, or refused while nobody had accepted it yet. */
  readonly failures: number;
  /** Why it looks for a place again. */
  readonly last: Failed | undefined;
  readonly avoid: ReadonlySet<string>;
  /** How often it has waited since it looks for a place, and until when it does. */
  readonly waits: number;
  readonly giveUpAtMs: number | undefined;
}

interface Placed {
  readonly placement: Placement;
  readonly looked: Tried;
}

const NOTHING_TRIED: Tried = { failures: 0, last: undefined, avoid: new Set(), waits: 0, giveUpAtMs: undefined };
/** Under this a second attempt costs more than the wait. */
const HEDGE_AFTER_MIN_MS = 500;

/**
 * Has a request's pictures made, by one worker or, where that one fails, by others: nothing that was accepted is lost.
 * What is finished stays finished, and the rest goes on from its last checkpoint.
 */
export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #budget: RetryBudget;
  readonly #slowness = new Slowness();

  constructor(options: DispatcherOptions) {
    this.#options = options;
    const { retryShare, retriesMax } = options.limits;
    this.#budget = new RetryBudget({ share: retryShare, max: retriesMax });
  }

  /**
   * @throws ServingError with the worker's own code, WORKER_LOST when it died and none could take over in time,
   * DEADLINE_EXCEEDED, NO_WORKER, or the reason of `signal`.
   */
  generate(request: ImageRequest, limits: MakeLimits): Promise<Generation> {
    const attributes = { "atelier.model": request.model, "atelier.images": request.numImages };
    return traced("dispatch", () => this.#generate(request, limits), { attributes });
  }

  async #generate(request: ImageRequest, limits: MakeLimits): Promise<Generation> {
    this.#budget.requestCame();
    const gathering = new Gathering(request, limits, this.#options.checkpoints);
    const ended = new AbortController(); // one slice that fails takes the others with it
    const signal = AbortSignal.any([limits.signal, ended.signal]);
    try {
      await this.#make(gathering.whole(), { request, limits: { ...limits, signal }, gathering }, NOTHING_TRIED);
      const generation = gathering.finish();
      const steps = generation.receipt.resumedAtSteps.reduce((sum, step) => sum + step, 0);
      this.#options.metrics.resumedSteps.inc(steps);
      return generation;
    } catch (error) {
      ended.abort(SUPERSEDED);
      throw error;
    } finally {
      gathering.close();
    }
  }

  /** Makes a slice of the request, and after a failure what that has left of it. */
  async #make(slice: Slice, making: Making, tried: Tried): Promise<void> {
    const { placement, looked } = await this.#place(slice, making, tried);
    const avoid = new Set(tried.avoid);
    const failed = await this.#attempt(slice, placement, making, avoid, looked.last);
    if (failed === undefined) return;
    currentSpan().event("attempt failed", {
      "error.type": failed.error.code,
      "atelier.worker.id": placement.worker.id,
      "atelier.image.first": slice.first,
      "atelier.images": slice.count,
    });
    const next = this.#afterFailure(failed, slice, making, { ...looked, avoid });
    await Promise.all(making.gathering.rest(slice).map((rest) => this.#make(rest, making, next)));
  }

  /** @throws the failure where nothing is to be done about it. */
  #afterFailure(failed: Failed, slice: Slice, { gathering, limits }: Making, tried: Tried): Tried {
    const { metrics, limits: own } = this.#options;
    const { error, accepted } = failed;
    const remedy = remedyFor(error);
    // Whose state was refused is not at fault, and would not know what to do about it.
    if (remedy === "from-noise") limits.deadline.check("making the pictures again from noise");
    // No work was lost where a worker leaves in order, nor where one refuses what another had taken.
    const refused = !accepted && gathering.accepted && (remedy === "another" || remedy === "from-noise");
    const free = error.code === "DRAINING" || refused;
    const failures = tried.failures + (free ? 0 : 1);
    if (remedy === "none" || limits.deadline.passed || failures >= own.attemptsMax) throw error;
    if (!free && !this.#budget.take()) {
      metrics.retriesRefused.inc();
      throw error;
    }
    metrics.retries.inc({ reason: error.code });
    if (remedy === "from-noise") {
      gathering.forgetStates(slice);
      return { ...NOTHING_TRIED, failures };
    }
    if (!accepted && tried.last !== undefined) return { ...tried, failures, last: failed }; // it looks on
    return { ...NOTHING_TRIED, failures, last: failed, avoid: tried.avoid };
  }

  /** A place for a slice: at once the first time, and after a failure elsewhere, or where it was when that is back. */
  #place(slice: Slice, making: Making, tried: Tried): Promise<Placed> {
    return traced("place", (span) => {
      const placed = this.#lookForPlace(slice, making, tried);
      if (!span.recording) return placed;
      return placed.then((found) => {
        const { worker, predicted } = found.placement;
        span.set({
          "atelier.worker.id": worker.id,
          "atelier.predicted.wait_ms": Math.round(predicted.waitMs),
          "atelier.predicted.finish_ms": Math.round(predicted.finishMs),
          "atelier.place.waits": found.looked.waits,
        });
        return found;
      });
    });
  }

  async #lookForPlace(slice: Slice, { request, limits, gathering }: Making, tried: Tried): Promise<Placed> {
    const { placer, clock, random, limits: own } = this.#options;
    const { last, avoid } = tried;
    const image = slice.count === request.numImages ? request : { ...request, numImages: slice.count };
    if (last === undefined) return { placement: await placer.place(image, { ...limits, avoid }), looked: tried };
    const giveUpAtMs = tried.giveUpAtMs ?? clock.nowMs() + Math.min(own.retryWaitMs, limits.deadline.leftMs / 2);
    for (let { waits } = tried, waited = false; ; waits++, waited = true) {
      const placement = await placer.place(image, { ...limits, avoid }).catch(noneIfNobody);
      // Back to one that has failed only after a while: what has just died looks alive for a moment more.
      const elsewhere = placement !== undefined && !avoid.has(placement.worker.address);
      if (placement !== undefined && (elsewhere || waited)) {
        return { placement, looked: { ...tried, waits, giveUpAtMs } };
      }
      placement?.release();
      if (!gathering.accepted && remedyFor(last.error) === "another") throw last.error;
      const delayMs = backoffMs(waits + 1, random);
      if (clock.nowMs() + delayMs > giveUpAtMs) throw last.error;
      await sleep(clock, delayMs, limits.signal);
    }
  }

  /** One attempt, or two side by side where the first is a straggler. Adds to `avoid` who failed. */
  async #attempt(
    slice: Slice,
    placement: Placement,
    making: Making,
    avoid: Set<string>,
    after: Failed | undefined,
  ): Promise<Failed | undefined> {
    const { clock, metrics } = this.#options;
    const startedAtMs = clock.nowMs();
    const first = new Attempt(slice, placement, making, this.#options, { kind: "retry", of: after?.trace });
    const second = await this.#hedge(first, slice, placement, making, avoid);
    const failed = second === undefined ? await failureOf(first, avoid) : await race(first, second, avoid, metrics);
    // What goes on from a checkpoint is sooner done than a whole request is predicted to be.
    if (failed === undefined && first.fromNoise) {
      this.#slowness.took(clock.nowMs() - startedAtMs, placement.predicted.finishMs);
    }
    return failed;
  }

  /** A second attempt beside `first` once that takes suspiciously long; undefined where it ends before, or cannot be. */
  async #hedge(
    first: Attempt,
    slice: Slice,
    { predicted, worker }: Placement,
    making: Making,
    avoid: ReadonlySet<string>,
  ): Promise<Attempt | undefined> {
    const { placer, clock, limits, metrics } = this.#options;
    if (limits.hedge === "off") return undefined;
    const ratio = limits.hedge === "learned" ? this.#slowness.stragglerRatio : limits.hedge;
    const over = new AbortController();
    const ended = first.failed.then(
      () => over.abort(SUPERSEDED),
      () => over.abort(SUPERSEDED),
    );
    const waited = sleep(clock, Math.max(HEDGE_AFTER_MIN_MS, predicted.finishMs * ratio), over.signal).catch(() => {});
    await Promise.race([ended, waited]);
    if (over.signal.aborted) return undefined;

    const { request, limits: asked } = making;
    const signal = AbortSignal.any([asked.signal, over.signal]);
    const others = { ...asked, signal, avoid: new Set([...avoid, worker.address]) };
    const image = { ...request, numImages: slice.count };
    const placement = await placer
      .place(image, others)
      .catch((error: unknown) => (signal.aborted ? undefined : noneIfNobody(error)));
    if (placement === undefined || others.avoid.has(placement.worker.address) || over.signal.aborted) {
      placement?.release();
      if (!over.signal.aborted) metrics.hedges.inc({ outcome: "no_worker" });
      return undefined;
    }
    if (!this.#budget.take()) {
      placement.release();
      metrics.hedges.inc({ outcome: "no_budget" });
      return undefined;
    }
    return new Attempt(slice, placement, making, this.#options, { kind: "hedge", of: first.trace });
  }
}

/** The first to complete the slice supersedes the other; undefined: one did. */
async function race(
  first: Attempt,
  second: Attempt,
  avoid: Set<string>,
  { hedges }: Pick<DispatchMetrics, "hedges">,
): Promise<Failed | undefined> {
  const ended = await Promise.race([first, second].map((attempt) => attempt.failed.then(() => attempt)));
  const other = ended === first ? second : first;
  let winner = ended;
  let failed = await failureOf(ended, avoid);
  if (failed === undefined) other.supersede();
  else {
    winner = other;
    failed = await failureOf(other, avoid);
  }
  hedges.inc({ outcome: failed === undefined && winner === second ? "won" : "lost" });
  return failed;
}

async function failureOf(attempt: Attempt, avoid: Set<string>): Promise<Failed | undefined> {
  const failed = await attempt.failed;
  if (failed !== undefined) avoid.add(attempt.address);
  return failed;
}

/** Nobody has room now, which may change; anything else is a failure. */
function noneIfNobody(error: unknown): undefined {
  if (error instanceof ServingError && (error.code === "NO_WORKER" || error.code === "OVERLOADED")) return undefined;
  throw error;
}
