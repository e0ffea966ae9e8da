import { type Clock, ServingError } from "@atelier/core";
import { PRIORITY_CLASSES, type PriorityClass } from "../caller.ts";
import type { WorkerSlot } from "../fleet/fleet.ts";
import type { JobsPlaced } from "../fleet/worker-load.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { ServiceOrder } from "../generations/ports.ts";
import type { ImageRequest } from "../image-request.ts";
import { AfterSteps } from "./after-steps.ts";
import type { Balancer, Choice } from "./balancer.ts";
import type { PlaceLimits, Placement, Placer, Prediction } from "./placer.ts";

/** The part of the fleet that placing needs. */
export interface PlacerFleet {
  views(): readonly WorkerView[];
  place(address: string, work: JobsPlaced): WorkerSlot;
  onChange(listener: () => void): () => void;
}

export interface FleetPlacerOptions {
  readonly fleet: PlacerFleet;
  readonly balancer: Balancer;
  readonly clock: Clock;
  readonly limits: PlacerLimits;
  readonly observer?: PlacementObserver;
}

/** What placing tells those who measure it. */
export interface PlacementObserver {
  placed(worker: WorkerView, work: Work, waitedMs: number): void;
  /** A placed request ended well. */
  ended(predictedMs: number, actualMs: number): void;
  waiting(count: number): void;
}

/** Device milliseconds, of one class. */
export interface Work {
  readonly priority: PriorityClass;
  readonly ms: number;
}

export interface PlacerLimits {
  /** A request is bound to a worker that will begin it within so many milliseconds, and waits here while there is none. */
  readonly windowMs: number;
  /** Requests that may wait here; more are refused. */
  readonly waitingMax: number;
}

/** Until so many requests of a model have ended here, all that is known of it is how it warmed up: alone, and once. */
const ENDED_MIN = 3;
/** A request that waits no longer than this has the worker to itself, as good as. */
const IDLE_WAIT_MAX_MS = 20;

/**
 * Binds requests to workers where the balancer says, as late as pays: a request for which no worker has room soon waits
 * here, so that the worker that is free first gets it, whatever was thought of it before.
 */
export class FleetPlacer implements Placer {
  readonly #options: FleetPlacerOptions;
  /** In the order of service. */
  readonly #waiting: Waiting[] = [];
  readonly #afterSteps = new AfterSteps();
  /** Requests that ended well, by model, up to ENDED_MIN. */
  readonly #ended = new Map<string, number>();
  #arrivals = 0;

  constructor(options: FleetPlacerOptions) {
    this.#options = options;
    options.fleet.onChange(() => this.#bindWaiting());
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /** Device milliseconds that those who wait are predicted to take, by class. */
  get waitingWorkMs(): Record<PriorityClass, number> {
    const sums = { interactive: 0, standard: 0, bulk: 0 };
    for (const { limits, workMs } of this.#waiting) sums[limits.order.priority] += workMs;
    return sums;
  }

  predict(image: ImageRequest, order: ServiceOrder): Prediction {
    const { fleet, balancer } = this.#options;
    const predicted = this.#withRest(image, balancer.pick(image, order, fleet.views()).predicted);
    return { ...predicted, measured: predicted.measured && (this.#ended.get(image.model) ?? 0) >= ENDED_MIN };
  }

  place(image: ImageRequest, limits: PlaceLimits): Promise<Placement> {
    return new Promise((resolve, reject) => {
      const { signal, deadline, order } = limits;
      const asked: Asked = { image, limits, askedAtMs: this.#options.clock.nowMs() };
      signal.throwIfAborted();
      deadline.check("placing the request on a worker");
      const choice = this.#choose(image, limits);
      if (this.#mayBind(choice) && !this.#waiting.some((other) => comesBefore(other, order))) {
        resolve(this.#bind(choice, asked));
        return;
      }
      this.#wait(asked, choice.predicted.workMs, { resolve, reject });
    });
  }

  #wait(asked: Asked, workMs: number, promise: Pick<Waiting, "resolve" | "reject">): void {
    const { limits, clock } = this.#options;
    const { signal, deadline } = asked.limits;
    if (this.#waiting.length >= limits.waitingMax)
      throw new ServingError("OVERLOADED", `${limits.waitingMax} requests wait for a worker, which is the most`);
    const leave = (finish: () => void) => {
      const at = this.#waiting.indexOf(waiting);
      if (at >= 0) this.#waiting.splice(at, 1);
      this.#options.observer?.waiting(this.#waiting.length);
      cancelTimer();
      signal.removeEventListener("abort", aborted);
      finish();
    };
    const waiting: Waiting = {
      ...asked,
      workMs,
      arrival: this.#arrivals++,
      resolve: (placement) => leave(() => promise.resolve(placement)),
      reject: (error) => leave(() => promise.reject(error)),
    };
    const aborted = () => waiting.reject(signal.reason);
    const cancelTimer = clock.after(deadline.leftMs, () =>
      waiting.reject(new ServingError("DEADLINE_EXCEEDED", "no worker was free in time")),
    );
    signal.addEventListener("abort", aborted);
    const at = this.#waiting.findIndex((other) => compare(waiting, other) < 0);
    this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, waiting);
    this.#options.observer?.waiting(this.#waiting.length);
  }

  /** Something changed: those who wait are bound as far as there is room, in order. */
  #bindWaiting(): void {
    for (const waiting of [...this.#waiting]) {
      if (!this.#options.fleet.views().some(({ requestsFree }) => requestsFree > 0)) return;
      try {
        const choice = this.#choose(waiting.image, waiting.limits);
        if (this.#mayBind(choice)) waiting.resolve(this.#bind(choice, waiting));
      } catch (error) {
        waiting.reject(error);
      }
    }
  }

  #choose(image: ImageRequest, { order, avoid }: Pick<PlaceLimits, "order" | "avoid">): Choice {
    const { fleet, balancer } = this.#options;
    const views = fleet.views();
    const others = views.filter(({ address, models }) => !avoid.has(address) && models.has(image.model));
    return balancer.pick(image, order, others.some((view) => view.ready) ? others : views);
  }

  #mayBind({ worker, predicted }: Choice): boolean {
    return predicted.waitMs <= this.#options.limits.windowMs && worker.requestsFree > 0;
  }

  #withRest(image: ImageRequest, predicted: Prediction): Prediction {
    return { ...predicted, finishMs: predicted.finishMs + this.#afterSteps.predictMs(image) };
  }

  #bind({ worker, predicted: toLastStep }: Choice, { image, limits, askedAtMs }: Asked): Placement {
    const { priority } = limits.order;
    const jobs = image.numImages;
    const predicted = this.#withRest(image, toLastStep);
    const slot = this.#options.fleet.place(worker.address, { priority, jobs, msEach: predicted.workMs / jobs });
    const { clock, observer } = this.#options;
    const placedAtMs = clock.nowMs();
    observer?.placed(worker, { priority, ms: predicted.workMs }, placedAtMs - askedAtMs);
    let begun = false;
    let over = false;
    return {
      worker,
      predicted,
      client: slot.client,
      accepted: (report) => {
        begun = true;
        slot.accepted(report);
      },
      release: (failure) => {
        slot.release(failure);
        if (over) return;
        over = true;
        if (failure !== undefined || !begun) return;
        this.#ended.set(image.model, Math.min(ENDED_MIN, (this.#ended.get(image.model) ?? 0) + 1));
        const tookMs = clock.nowMs() - placedAtMs;
        if (toLastStep.waitMs <= IDLE_WAIT_MAX_MS) this.#afterSteps.observe(image, tookMs - toLastStep.finishMs);
        observer?.ended(predicted.finishMs, tookMs);
      },
    };
  }
}

interface Asked {
  readonly image: ImageRequest;
  readonly limits: PlaceLimits;
  readonly askedAtMs: number;
}

interface Waiting extends Asked {
  readonly arrival: number;
  /** Device milliseconds, as predicted when it came. */
  readonly workMs: number;
  resolve(placement: Placement): void;
  reject(error: unknown): void;
}

/** The more urgent class, then the earlier deadline, then who came first. */
function compare(a: Waiting, b: Waiting): number {
  const byClass = rank(a.limits.order) - rank(b.limits.order);
  if (byClass !== 0) return byClass;
  const byDeadline = a.limits.deadline.atMs - b.limits.deadline.atMs;
  return byDeadline !== 0 ? byDeadline : a.arrival - b.arrival;
}

/** One that waits and is as urgent or more: a newcomer does not pass it. */
function comesBefore(other: Waiting, order: ServiceOrder): boolean {
  return rank(other.limits.order) <= rank(order);
}

function rank({ priority }: ServiceOrder): number {
  return PRIORITY_CLASSES.indexOf(priority);
}
