import { type Clock, type Random, ServingError, toServingError } from "@atelier/core";
import { type JobQueue, openJobQueue } from "@atelier/job-queue";
import { type ObjectStore, openObjectStore } from "@atelier/object-store";
import type { Logger } from "@atelier/telemetry";
import type { BulkConfig } from "../config.ts";
import type { Pipeline } from "../pipeline.ts";
import type { WorkerIdentity } from "../server/worker-state.ts";
import { backOffMs } from "./back-off.ts";
import type { BulkMetrics } from "./bulk-metrics.ts";
import { PipelineMaker, viewOf } from "./pipeline-maker.ts";
import { Puller } from "./puller.ts";

export interface BulkParts {
  readonly pipeline: Pipeline;
  readonly identity: WorkerIdentity;
  readonly metrics: BulkMetrics;
  readonly logger: Logger;
  readonly clock: Clock;
  readonly random: Random;
  /** Items at one time. */
  readonly heldMax: number;
  /** A bug. The process cannot go on. */
  readonly onFatal: (error: unknown) => void;
}

const OPEN_AGAIN = { firstMs: 500, mostMs: 30_000 };
/** What is left of it when the worker goes: each item has said where it stands by then, or cannot. */
const CLOSE_MAX_MS = 15_000;

/**
 * The worker's side of bulk jobs. It begins when the work queue and the object store first answer; until then, and
 * whenever they do not, the worker serves requests all the same.
 */
export class Bulk {
  readonly #config: BulkConfig;
  readonly #parts: BulkParts;
  readonly #stopped = new AbortController();
  #queue: JobQueue | undefined;
  #store: ObjectStore | undefined;
  #puller: Puller | undefined;
  #opening: Promise<void> = Promise.resolve();

  constructor(config: BulkConfig, parts: BulkParts) {
    this.#config = config;
    this.#parts = parts;
  }

  start(): void {
    this.#opening = this.#open().catch(this.#parts.onFatal);
  }

  /** Pulls nothing from now on; what it has goes on. */
  stop(): void {
    this.#stopped.abort();
    this.#puller?.stop();
  }

  /** The worker is out of time: what waits for the queue or the store is handed back. */
  leave(): void {
    this.stop();
    this.#puller?.leave();
  }

  /** Resolves when it is stopped and has no items any more, or cannot get rid of them. */
  async settled(): Promise<void> {
    await this.#opening;
    await this.#puller?.settled();
  }

  async close(): Promise<void> {
    this.leave();
    const { clock, logger } = this.#parts;
    const late = new Promise<"late">((resolve) => clock.after(CLOSE_MAX_MS, () => resolve("late")));
    const outcome = await Promise.race([this.settled(), late]);
    if (outcome === "late") logger.warn("items are left to their leases: the queue or the store does not answer");
    await Promise.allSettled([this.#queue?.close(), this.#store?.close()]);
  }

  async #open(): Promise<void> {
    const { clock, logger, pipeline, identity, metrics, random, heldMax } = this.#parts;
    const { queue, objects, s3, attemptsMax } = this.#config;
    for (let failures = 1; !this.#stopped.signal.aborted; failures++) {
      try {
        this.#store ??= await openObjectStore(objects, { clock }, s3);
        this.#queue ??= await openJobQueue(queue, { clock, onProblem: (problem) => logger.warn({ problem }, "queue") });
        break;
      } catch (error) {
        const { code, detail } = toServingError(error);
        if (!(error instanceof ServingError) || code !== "STORAGE_UNAVAILABLE") throw error;
        const waitMs = backOffMs(failures, OPEN_AGAIN, random);
        logger.warn({ problem: detail, waitMs }, "items cannot be pulled yet");
        await this.#pause(waitMs);
      }
    }
    if (this.#stopped.signal.aborted) return;
    const puller = new Puller({
      queue: this.#queue!,
      store: this.#store!,
      maker: new PipelineMaker(pipeline, { identity, clock }),
      view: () => viewOf(pipeline),
      clock,
      random,
      workerId: identity.id,
      attemptsMax,
      heldMax,
      observer: metrics,
    });
    metrics.puller = puller;
    this.#puller = puller;
    pipeline.onChange(() => puller.wake());
    this.#queue!.onConnection((lost) => {
      if (lost === undefined) puller.wake();
    });
    puller.start();
    logger.info({ queue: queue.address, objects }, "pulling items");
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const takeBack = this.#parts.clock.after(ms, resolve);
      this.#stopped.signal.addEventListener("abort", () => {
        takeBack();
        resolve();
      });
    });
  }
}
