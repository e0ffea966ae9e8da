import { type Clock, newId, type Random, ServingError, toServingError } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import { backoffMs } from "../fleet/backoff.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { MakeLimits } from "../generations/ports.ts";
import type { Generation, ImageRequest } from "../image-request.ts";
import type { Placement, Placer } from "../placement/placer.ts";
import { backlogFromWire, requestToWire } from "../wire.ts";
import { allowedSilenceMs } from "./allowed-silence.ts";
import type { ByteBudget } from "./byte-budget.ts";
import { callWorker } from "./call-worker.ts";
import { checkpointInterval } from "./checkpoint-interval.ts";
import type { DispatchMetrics } from "./dispatch-metrics.ts";
import { explain, remedyFor } from "./failure.ts";
import { Gathering } from "./gathering.ts";
import { RetryBudget } from "./retry-budget.ts";
import type { Slice } from "./slice.ts";
import { Slowness } from "./slowness.ts";
import { StallWatch } from "./stall-watch.ts";

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

/** How a call failed. */
interface Failed {
  readonly error: ServingError;
  /** Its worker had taken it. */
  readonly accepted: boolean;
}

/** A request on its way. */
interface Making {
  readonly request: ImageRequest;
  readonly limits: MakeLimits;
  readonly gathering: Gathering;
}

/** A call that runs, or ran. */
interface Call {
  readonly address: string;
  /** Undefined: its slice is complete. Rejects with the reason of the request's signal. */
  readonly failure: Promise<Failed | undefined>;
  readonly cancel: (reason: ServingError) => void;
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
  async generate(request: ImageRequest, limits: MakeLimits): Promise<Generation> {
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
    } finally {
      ended.abort(SUPERSEDED);
      gathering.close();
    }
  }

  /** Makes a slice of the request, and after a failure what that has left of it. */
  async #make(slice: Slice, making: Making, tried: Tried): Promise<void> {
    const { placement, looked } = await this.#place(slice, making, tried);
    const avoid = new Set(tried.avoid);
    const failed = await this.#attempt(slice, placement, making, avoid);
    if (failed === undefined) return;
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
  async #place(
    slice: Slice,
    { request, limits, gathering }: Making,
    tried: Tried,
  ): Promise<{ placement: Placement; looked: Tried }> {
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

  /** One call, or two side by side where the first is a straggler. Adds to `avoid` who failed. */
  async #attempt(slice: Slice, placement: Placement, making: Making, avoid: Set<string>): Promise<Failed | undefined> {
    const first = this.#call(slice, placement, making);
    const second = await this.#hedge(first, slice, placement, making, avoid);
    if (second === undefined) return failureOf(first, avoid);

    const { hedges } = this.#options.metrics;
    const ended = await Promise.race([first, second].map((call) => call.failure.then(() => call)));
    const other = ended === first ? second : first;
    const failure = (await failureOf(ended, avoid)) && (await failureOf(other, avoid));
    const won = (await ended.failure) === undefined ? ended : other;
    if (won === ended) {
      other.cancel(SUPERSEDED);
      await other.failure;
    }
    hedges.inc({ outcome: failure === undefined && won === second ? "won" : "lost" });
    return failure;
  }

  /** A second call beside `first` once that takes suspiciously long; undefined where it ends before, or cannot be. */
  async #hedge(
    first: Call,
    slice: Slice,
    { predicted, worker }: Placement,
    making: Making,
    avoid: ReadonlySet<string>,
  ): Promise<Call | undefined> {
    const { placer, clock, limits, metrics } = this.#options;
    if (limits.hedge === "off") return undefined;
    const ratio = limits.hedge === "learned" ? this.#slowness.stragglerRatio : limits.hedge;
    const over = new AbortController();
    const ended = first.failure.then(
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
      if (!over.signal.aborted) metrics.hedges.inc({ outcome: "no worker" });
      return undefined;
    }
    if (!this.#budget.take()) {
      placement.release();
      metrics.hedges.inc({ outcome: "no budget" });
      return undefined;
    }
    return this.#call(slice, placement, making);
  }

  #call(slice: Slice, placement: Placement, { request, limits, gathering }: Making): Call {
    const { clock, fleet, limits: own, metrics, log } = this.#options;
    const { worker, client, predicted } = placement;
    const { model } = request;
    const maker = `${worker.models.get(model)?.digest}${worker.simulated ? " simulated" : ""}`;
    const cancelled = new AbortController();
    const stalled = new AbortController();
    const startedAtMs = clock.nowMs();
    const watch = new StallWatch(clock, {
      floorMs: own.stallMs,
      allowedMs: () => {
        const view = fleet.views().find(({ address }) => address === worker.address);
        return allowedSilenceMs(model, predicted, view, own.stallMs);
      },
      onStall: (silentMs) => {
        const message = `nothing was heard of the request for ${Math.round(silentMs)} ms`;
        stalled.abort(new ServingError("WORKER_LOST", message));
      },
    });
    gathering.called(worker.id);
    let accepted = false;
    const worthMs = limits.onCheckpoint === undefined ? predicted.workMs : Number.POSITIVE_INFINITY;
    const every = own.checkpointEvery ?? checkpointInterval(request, worthMs);
    const resumeFrom = gathering.statesOf(slice, maker);
    const call = callWorker(
      client,
      requestToWire(request, {
        callId: newId(request.id),
        order: limits.order,
        slice,
        checkpointEvery: every,
        resumeFrom,
      }),
      {
        deadlineAtMs: limits.deadline.atMs,
        signal: AbortSignal.any([limits.signal, cancelled.signal, stalled.signal]),
        take: (message) => {
          watch.heard();
          if (message.event.case === "accepted") {
            accepted = true;
            placement.accepted(backlogFromWire(message.event.value));
          }
          gathering.take(slice, maker, message);
        },
      },
    );

    const settle = (failure: ServingError | undefined): Failed | undefined => {
      // A connection that breaks after the receipt came took nothing from the answer.
      if (gathering.complete(slice)) {
        // What goes on from a checkpoint is sooner done than a whole request is predicted to be.
        if (resumeFrom.length === 0) this.#slowness.took(clock.nowMs() - startedAtMs, predicted.finishMs);
        metrics.attempts.inc({ outcome: "ok" });
        placement.release();
        return undefined;
      }
      const missing = `worker ${worker.id} ended its answer with ${gathering.missingText(slice)}`;
      const explained = explain(failure ?? new ServingError("INTERNAL", missing), worker);
      metrics.attempts.inc({ outcome: stalled.signal.aborted ? "STALLED" : explained.code });
      placement.release(explained);
      // What is the caller's to mend is told to the caller; this is for whoever looks after the workers.
      if (explained.retryable) {
        log.info(
          { request: request.id, worker: worker.id, code: explained.code, why: explained.detail },
          "call failed",
        );
      }
      return { error: explained, accepted };
    };
    const takenBack = (reason: unknown): Failed | undefined => {
      if (stalled.signal.aborted && reason === stalled.signal.reason) return settle(reason as ServingError);
      const superseded = cancelled.signal.aborted || reason === SUPERSEDED;
      metrics.attempts.inc({ outcome: superseded ? "SUPERSEDED" : "CANCELLED" });
      placement.release(superseded ? SUPERSEDED : toServingError(reason)); // it says nothing of the worker, nor of its times
      if (cancelled.signal.aborted) return { error: SUPERSEDED, accepted };
      throw reason;
    };
    const failure = call.then(settle, takenBack).finally(() => watch.stop());
    failure.catch(() => {}); // whoever waits for it hears of it; a call that lost the race may have nobody left
    return { address: worker.address, failure, cancel: (reason) => cancelled.abort(reason) };
  }
}

/** Ends what somebody else has finished. */
const SUPERSEDED = new ServingError("CANCELLED", "the pictures came from another attempt");

async function failureOf(call: Call, avoid: Set<string>): Promise<Failed | undefined> {
  const failure = await call.failure;
  if (failure !== undefined) avoid.add(call.address);
  return failure;
}

/** Nobody has room now, which may change; anything else is a failure. */
function noneIfNobody(error: unknown): undefined {
  if (error instanceof ServingError && (error.code === "NO_WORKER" || error.code === "OVERLOADED")) return undefined;
  throw error;
}

/** Rejects with the signal's reason. */
function sleep(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const abort = () => {
      takeBack();
      reject(signal.reason);
    };
    const takeBack = clock.after(ms, () => {
      signal.removeEventListener("abort", abort);
      resolve();
    });
    signal.addEventListener("abort", abort, { once: true });
  });
}
