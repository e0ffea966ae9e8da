import { type Clock, type Random, ServingError, toServingError } from "@atelier/core";
import type { JobQueue, Lease } from "@atelier/job-queue";
import type { ObjectStore } from "@atelier/object-store";
import { PriorityClass, type WorkItem } from "@atelier/proto";
import { inScope, outOfScope, startSpan, traceContextOf } from "@atelier/telemetry";
import { type Ask, BulkWork, type ItemClass, type WorkerView } from "./bulk-work.ts";
import { HeldItem, type ItemEnd, type ItemWorld } from "./held-item.ts";
import type { Verdict } from "./item-failure.ts";
import type { ItemMaker } from "./item-maker.ts";
import { Pauses, type Pillar } from "./pauses.ts";

export interface PullerOptions {
  readonly queue: Pick<JobQueue, "work" | "events">;
  readonly store: Pick<ObjectStore, "put" | "get" | "remove" | "check">;
  readonly maker: ItemMaker;
  /** The worker as it is now. */
  readonly view: () => WorkerView;
  readonly clock: Clock;
  readonly random: Random;
  readonly workerId: string;
  /** Tries of one item. */
  readonly attemptsMax: number;
  /** Items at one time, whatever they are at. */
  readonly heldMax: number;
  readonly observer: PullerObserver;
}

/** Hears of it for metrics and the log. */
export interface PullerObserver {
  /** The queue was asked: how many came. */
  pulled(itemClass: ItemClass, items: number): void;
  /** An item was delivered; `attempt` over 1: it was tried before. */
  took(attempt: number): void;
  ended(end: ItemEnd, itemClass: ItemClass, ms: number): void;
  /** The store or the queue took so long to take something, tries again included. */
  waited(pillar: Pillar, ms: number): void;
  paused(pillar: Pillar, error: ServingError): void;
  /** The queue and the store answer again. */
  wentOn(): void;
  notMade(item: WorkItem, error: ServingError, verdict: Verdict): void;
}

const WIRE_CLASSES: Readonly<Record<ItemClass, PriorityClass>> = {
  standard: PriorityClass.STANDARD,
  bulk: PriorityClass.BULK,
};
/** How often whoever watches a job hears where its items stand, and leases are looked at. */
const TICK_MS = 500;
/** What waits for models on disk is asked for so often. */
const DEPTHS_MS = 2_000;
/** A model that could not be had here is left alone for so long. */
const ASIDE_MS = 10_000;

/**
 * Pulls items, has them made and sees each to its end. When and what to pull is `BulkWork`'s to decide; an item's life is
 * `HeldItem`'s. Many are in flight, and none waits for another's writes.
 */
export class Puller {
  readonly #options: PullerOptions;
  readonly #work: BulkWork;
  readonly #pauses: Pauses;
  readonly #world: Omit<ItemWorld, "giveWay">;
  readonly #held = new Map<HeldItem, { readonly itemClass: ItemClass; extendedAtMs: number }>();
  readonly #stopped = new AbortController();
  readonly #leaving = new AbortController();
  readonly #pulls = new Set<Promise<void>>();
  /** Ends what is asked for now: at a pause, and when it stops. */
  #asking = new AbortController();
  /** Those that are made now are given up by this: see `WorkerView.crowded`. */
  #giveWay = new AbortController();
  #lookAsked = false;
  #takeBackLook: (() => void) | undefined;
  #takeBackTick: (() => void) | undefined;
  #depthsAtMs = -Infinity;
  #probing = false;
  #emptied: (() => void)[] = [];

  constructor(options: PullerOptions) {
    this.#options = options;
    this.#work = new BulkWork(options);
    this.#pauses = new Pauses(options.random);
    this.#world = {
      ...options,
      events: options.queue.events,
      leaving: this.#leaving.signal,
      failed: (pillar, error) => this.#failed(pillar, error),
      answered: (pillar, waitedMs) => {
        options.observer.waited(pillar, waitedMs);
        this.#answered(pillar);
      },
      notMade: (item, error, verdict) => this.#notMade(item, error, verdict),
    };
  }

  start(): void {
    this.#tick();
    this.wake();
  }

  /** Items that it has, by phase, and why it pulls none. */
  get state(): { readonly held: number; readonly denoising: number; readonly paused: readonly Pillar[] } {
    return { ...this.#counts, held: this.#held.size, paused: this.#pauses.failing };
  }

  /** What the worker does may have changed: looks whether something should be pulled. */
  wake(): void {
    if (this.#lookAsked || this.#stopped.signal.aborted) return;
    this.#lookAsked = true;
    // Whoever wakes it is at some request; what is pulled is of others.
    outOfScope(() =>
      setImmediate(() => {
        this.#lookAsked = false;
        this.#look();
      }),
    );
  }

  /** Pulls nothing from now on; what it has goes on. */
  stop(): void {
    this.#stopped.abort();
    this.#asking.abort();
    this.#takeBackLook?.();
  }

  /** The worker is out of time: what waits for the queue or the store is given up. */
  leave(): void {
    this.stop();
    this.#leaving.abort();
  }

  /** Resolves when it is stopped and has no item any more. */
  async settled(): Promise<void> {
    await Promise.all(this.#pulls);
    if (this.#held.size > 0) await new Promise<void>((resolve) => this.#emptied.push(resolve));
    this.#takeBackTick?.();
  }

  #look(): void {
    if (this.#stopped.signal.aborted) return;
    this.#takeBackLook?.();
    this.#takeBackLook = undefined;
    const { clock, view } = this.#options;
    const now = view();
    if (now.crowded && this.#held.size > 0) this.#makeRoom();
    const waitMs = this.#pauses.untilMs - clock.nowMs();
    if (waitMs > 0) {
      this.#takeBackLook = clock.after(waitMs, () => this.#look());
      return;
    }
    if (this.#pauses.failing.includes("store")) {
      this.#probeStore();
      return;
    }
    this.#hearDepths(now);
    for (const ask of this.#work.asks(now, this.#counts, clock.nowMs())) {
      const pull = this.#pull(ask).finally(() => this.#pulls.delete(pull));
      this.#pulls.add(pull);
    }
  }

  /** A request comes before all that is pulled, also where it needs the memory that this keeps. */
  #makeRoom(): void {
    this.#giveWay.abort(new ServingError("OVERLOADED", "a request needs the memory that the item's model takes"));
    this.#giveWay = new AbortController();
    this.#asking.abort();
    this.#asking = new AbortController();
  }

  get #counts() {
    let denoising = 0;
    for (const item of this.#held.keys()) if (item.denoising) denoising += 1;
    return { all: this.#held.size, denoising };
  }

  async #pull(ask: Ask): Promise<void> {
    const { queue, clock, observer } = this.#options;
    const { itemClass, model, max, waitMs } = ask;
    let leases: readonly Lease[] = [];
    try {
      const pull = { priorityClass: WIRE_CLASSES[itemClass], model, max, waitMs, signal: this.#asking.signal };
      leases = await queue.work.pull(pull);
      this.#answered("queue");
    } catch (error) {
      this.#failed("queue", expected(error));
    }
    this.#work.answered(ask, leases.length, clock.nowMs());
    if (leases.length > 0) observer.pulled(itemClass, leases.length);
    for (const lease of leases) this.#take(lease, itemClass);
    this.wake();
  }

  #take(lease: Lease, itemClass: ItemClass): void {
    const { clock, observer } = this.#options;
    if (this.#stopped.signal.aborted) {
      // Where that does not reach the queue, the lease runs out.
      const back = lease.release({ forgiven: true }).catch(() => {});
      this.#pulls.add(back);
      void back.finally(() => this.#pulls.delete(back));
      return;
    }
    const item = new HeldItem(lease, { ...this.#world, giveWay: this.#giveWay.signal });
    const sinceMs = clock.nowMs();
    this.#held.set(item, { itemClass, extendedAtMs: sinceMs });
    observer.took(lease.attempt);
    void this.#run(item).then((end) => {
      this.#held.delete(item);
      observer.ended(end, itemClass, clock.nowMs() - sinceMs);
      if (this.#held.size === 0) for (const emptied of this.#emptied.splice(0)) emptied();
      this.wake();
    });
  }

  /** An item as a part of the trace that submitted its job, with the submission's name on every line logged for it. */
  async #run(item: HeldItem): Promise<ItemEnd> {
    const { jobId, itemIndex, round, requestId, traceparent, tracestate, order } = item.lease.item;
    const tenant = order?.tenant ?? "";
    const attributes = {
      "messaging.operation.type": "process",
      "messaging.destination.name": "items",
      "atelier.job.id": jobId,
      "atelier.job.item": itemIndex,
      "atelier.job.round": round,
      "atelier.job.attempt": item.lease.attempt,
      "atelier.tenant": tenant,
      "atelier.worker.id": this.#options.workerId,
    };
    const span = startSpan("job.item", { kind: "consumer", attributes }, traceContextOf({ traceparent, tracestate }));
    const fields = {
      job: jobId,
      item: String(itemIndex),
      ...(requestId !== "" && { request_id: requestId }),
      ...(tenant !== "" && { tenant }),
    };
    const end = await inScope({ fields, span }, () => item.run(() => this.wake()));
    span.set({ "atelier.job.item_end": end });
    span.end();
    return end;
  }

  #notMade(item: WorkItem, error: ServingError, verdict: Verdict): void {
    const { clock, observer } = this.#options;
    observer.notMade(item, error, verdict);
    // Of the worker's own: others of this model would fare no better here now.
    const workers = ["OVERLOADED", "INVALID_BUNDLE", "DEVICE_UNAVAILABLE", "MODEL_NOT_FOUND"];
    if (!workers.includes(error.code)) return;
    this.#work.setAside(item.parameters?.model ?? "", clock.nowMs() + ASIDE_MS);
    clock.after(ASIDE_MS, () => this.wake());
  }

  #failed(pillar: Pillar, error: ServingError): void {
    if (!this.#pauses.failed(pillar, this.#options.clock.nowMs())) return;
    this.#asking.abort();
    this.#asking = new AbortController();
    this.#options.observer.paused(pillar, error);
  }

  #answered(pillar: Pillar): void {
    if (!this.#pauses.answered(pillar) || this.#pauses.failing.length > 0) return;
    this.#options.observer.wentOn();
    this.wake();
  }

  /** No picture is made for a store that may not take it. */
  #probeStore(): void {
    if (this.#probing) return;
    this.#probing = true;
    void this.#options.store
      .check()
      .then(
        () => this.#answered("store"),
        (error: unknown) => this.#failed("store", expected(error)),
      )
      .finally(() => {
        this.#probing = false;
        this.wake();
      });
  }

  /** A model on disk is loaded for what is known to wait. */
  #hearDepths({ models }: WorkerView): void {
    const { clock, queue } = this.#options;
    if (models.every(({ resident }) => resident) || clock.nowMs() - this.#depthsAtMs < DEPTHS_MS) return;
    this.#depthsAtMs = clock.nowMs();
    void queue.work
      .depths()
      .then((depths) => {
        this.#work.heard(
          depths
            .filter(({ waiting }) => waiting > 0)
            .flatMap(({ priorityClass, model, oldestMs }) => {
              const itemClass = (Object.keys(WIRE_CLASSES) as ItemClass[]).find(
                (each) => WIRE_CLASSES[each] === priorityClass,
              );
              return itemClass === undefined ? [] : [{ itemClass, model, oldestMs }];
            }),
        );
        this.wake();
      })
      .catch((error: unknown) => this.#failed("queue", expected(error)));
  }

  /** Leases are extended at a third of their length. */
  #tick(): void {
    const { clock, workerId } = this.#options;
    this.#takeBackTick = clock.after(TICK_MS, () => this.#tick());
    const nowMs = clock.nowMs();
    for (const [{ lease, steps }, kept] of this.#held) {
      lease.report({ workerId, stepsDone: steps.done, stepsTotal: steps.total });
      if (nowMs - kept.extendedAtMs < lease.leaseMs / 3) continue;
      kept.extendedAtMs = nowMs;
      void lease.extend().catch((error: unknown) => this.#failed("queue", expected(error)));
    }
    this.wake(); // a turn, a stay or a listening may be over
  }
}

/** @throws what is a bug. */
function expected(error: unknown): ServingError {
  const known = toServingError(error);
  if (known.code === "INTERNAL") throw error;
  return known;
}
