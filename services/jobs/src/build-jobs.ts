import { type Clock, type InvariantError, type Random, ServingError } from "@atelier/core";
import type { HttpApp } from "@atelier/http";
import { type JobQueue, openJobQueue, type QueueDepth } from "@atelier/job-queue";
import { openObjectStore } from "@atelier/object-store";
import type { Logger } from "@atelier/telemetry";
import { ActiveLease } from "./active-lease.ts";
import { Booking } from "./booking.ts";
import type { JobsConfig } from "./config.ts";
import { delay } from "./delay.ts";
import { JobEngine } from "./engine/job-engine.ts";
import { buildApp } from "./http/app.ts";
import { HttpGateway } from "./http-gateway.ts";
import { ChunkItems, Intake } from "./intake/index.ts";
import { jobKeys } from "./job.ts";
import { createJobsMetrics } from "./metrics.ts";
import { publishing } from "./publish-traces.ts";
import { Manifest } from "./results/manifest.ts";
import { PictureBook } from "./results/picture-book.ts";
import { checkHookUrl } from "./webhooks/hook-url.ts";
import { Webhooks } from "./webhooks/webhooks.ts";

/** The whole service, active but not listening yet. */
export interface JobsService {
  readonly app: HttpApp;
  /** Lets go of everything but the app, which is closed before. */
  close(): Promise<void>;
}

export interface JobsWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  /** Told of a broken invariant after its caller was answered; a process stops on it. */
  readonly onBug: (bug: InvariantError) => void;
  /** Another instance is active: this one has to end at once. */
  readonly onReplaced: (why: string) => void;
  /** Asked to stop: nothing is waited for any more. */
  readonly stopping: AbortSignal;
}

/**
 * The parts as the configuration chooses them. Waits for the queue and the object store to answer, and for another instance
 * to end. Undefined where it was asked to stop meanwhile.
 */
export async function buildJobs(config: JobsConfig, world: JobsWorld): Promise<JobsService | undefined> {
  const { clock, log, stopping } = world;
  const objects = await patiently("the object store", world, () => openObjectStore(config.objects, world, config.s3));
  const queue = await patiently("the queue", world, () =>
    openJobQueue(config.queue, { clock, onProblem: (text) => log.warn({ reason: text }, "the queue has a problem") }),
  );
  if (objects === undefined || queue === undefined) return undefined;
  const lease = new ActiveLease({ records: queue.records, clock, log, onLost: world.onReplaced });
  const active = await patiently("the active lease", world, () => lease.acquire(stopping));
  if (active !== true) {
    await queue.close();
    return undefined;
  }

  const items = new ChunkItems(objects);
  const book = new PictureBook(queue.events);
  const engine: JobEngine = new JobEngine({
    queue,
    items,
    clock,
    log,
    beforeEnd: (jobId) => manifest.write(jobId),
    removeObjects: async (jobId) => void (await objects.removeAll(jobKeys(jobId).all)),
    leaseMs: config.queue.leaseMs,
    keptMs: config.keptMs,
    publishing,
  });
  engine.onChange(({ type, job }) => {
    if (type === "removed") book.forget(job.record.id);
  });
  const manifest = new Manifest({ items, jobs: engine, book, objects });
  const depths = new QueueDepths(queue, clock);
  const trouble = () => engine.trouble;
  const metrics = createJobsMetrics({
    jobs: () => engine.kept(),
    depths: () => depths.last,
    trouble,
    revision: config.revision,
  });
  const gateway = new HttpGateway({ urls: config.gateways, token: config.internalToken });
  const booking = new Booking({
    gateway,
    usage: () => engine.usage(),
    onStanding: (tenant, exhausted) => engine.hold(tenant, exhausted),
    clock,
    log,
  });
  const webhooks = new Webhooks({
    ...world,
    records: queue.records,
    events: queue.events,
    jobs: engine,
    logger: log,
    registry: metrics.registry,
    privateAllowed: config.webhookPrivate,
  });
  engine.onOutcome = metrics.itemEnded;
  const intake = new Intake({
    records: queue.records,
    objects,
    items,
    jobs: engine,
    gateway,
    clock,
    log,
    limits: config,
    checkWebhook: ({ url }) => void checkHookUrl(url, { privateAllowed: config.webhookPrivate }),
  });
  const app = await buildApp({
    ...world,
    metrics,
    jobs: engine,
    intake,
    items,
    objects,
    queue,
    manifest,
    book,
    webhooks,
    internalToken: config.internalToken,
    trouble,
  });

  await patiently("the event log", world, () => engine.start());
  await patiently("webhooks", world, () => webhooks.start());
  await intake.start();
  booking.start();
  depths.start();
  return {
    app,
    close: async () => {
      depths.close();
      intake.close();
      await webhooks.close();
      await engine.close();
      await booking.close();
      await lease.release();
      await queue.close();
      await objects.close();
    },
  };
}

const RETRY_MS = 1_000;

/** Until it works or is not wanted any more: a store that starts later than we do is no reason to end. */
async function patiently<T>(
  what: string,
  { clock, log, stopping }: JobsWorld,
  run: () => Promise<T>,
): Promise<T | undefined> {
  let told: string | undefined;
  while (!stopping.aborted) {
    try {
      return await run();
    } catch (error) {
      if (!(error instanceof ServingError) || error.code !== "STORAGE_UNAVAILABLE") throw error;
      if (told !== error.detail) log.warn({ reason: error.detail }, `waiting for ${what}`);
      told = error.detail;
      await delay(clock, RETRY_MS, stopping);
    }
  }
  return undefined;
}

const DEPTHS_MS = 5_000;

/** What the queue holds, asked now and then, so that who reads metrics does not wait for it. */
class QueueDepths {
  last: readonly QueueDepth[] = [];
  readonly #queue: JobQueue;
  readonly #clock: Clock;
  #cancel: () => void = () => {};

  constructor(queue: JobQueue, clock: Clock) {
    this.#queue = queue;
    this.#clock = clock;
  }

  start(): void {
    this.#cancel = this.#clock.after(DEPTHS_MS, async () => {
      // While the queue is away the last answer stands; another metric says that it is.
      this.last = await this.#queue.work.depths().catch(() => this.last);
      this.start();
    });
  }

  close(): void {
    this.#cancel();
  }
}
