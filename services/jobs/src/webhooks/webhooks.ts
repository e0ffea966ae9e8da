import { type Clock, type Random, ServingError } from "@atelier/core";
import type { EventLog, Records } from "@atelier/job-queue";
import type { Logger, Registry } from "@atelier/telemetry";
import type { JobNews, Jobs, JobView } from "../ports.ts";
import { callBody } from "./call-body.ts";
import { type CallReceiver, openReceivers } from "./call-receiver.ts";
import { Deliverer } from "./deliverer.ts";
import { type Delivery, type DeliveryStatus, deliveryId } from "./delivery.ts";
import { DeliveryLog } from "./delivery-log.ts";
import { HookWatch } from "./hook-watch.ts";
import { ProgressCalls } from "./progress-calls.ts";
import { SigningSecrets } from "./signing-secrets.ts";
import { createWebhookMetrics, type WebhookMetrics } from "./webhook-metrics.ts";

export interface WebhooksParts {
  readonly records: Records;
  readonly events: EventLog;
  readonly jobs: Jobs;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly registry: Registry;
  /** ATELIER_WEBHOOK_PRIVATE=allow. */
  readonly privateAllowed: boolean;
  /** How receivers are called, in tests. */
  readonly receivers?: { readonly call: CallReceiver; close(): Promise<void> };
}

export interface DeliveryFilter {
  readonly status?: DeliveryStatus;
  /** Those older than this one. */
  readonly after?: string;
  readonly max: number;
}

const HOUR_MS = 3_600_000;
/** How long the log keeps what has ended. */
const KEPT_MS = 7 * 24 * HOUR_MS;
/** And how much of one job's, the newest. */
const KEPT_MAX = 1_000;

/**
 * Calls to receivers that jobs name: each change of status and each failed item until the receiver has taken it, for a day;
 * progress now and then. Of all instances of the service only the active one runs it.
 */
export class Webhooks {
  readonly secrets: SigningSecrets;
  readonly #parts: WebhooksParts;
  readonly #log: DeliveryLog;
  readonly #deliverer: Deliverer;
  readonly #watch: HookWatch;
  readonly #progress: ProgressCalls;
  readonly #receivers: NonNullable<WebhooksParts["receivers"]>;
  readonly #metrics: WebhookMetrics;
  #unsubscribe: () => void = () => {};
  #cancelPruning: () => void = () => {};
  #pruning: Promise<void> | undefined;

  constructor(parts: WebhooksParts) {
    this.#parts = parts;
    this.#log = new DeliveryLog(parts.records);
    this.secrets = new SigningSecrets(parts);
    this.#receivers = parts.receivers ?? openReceivers(parts);
    this.#metrics = createWebhookMetrics(parts.registry, () => this.#deliverer.pending);
    this.#deliverer = new Deliverer({
      ...parts,
      log: this.#log,
      secrets: this.secrets,
      call: this.#receivers.call,
      metrics: this.#metrics,
      onGone: (jobId) => this.#gone(jobId),
    });
    this.#watch = new HookWatch({ ...parts, deliverer: this.#deliverer });
    this.#progress = new ProgressCalls({
      clock: parts.clock,
      call: (job) => this.#callProgress(job),
      onDropped: () => this.#metrics.calls.inc({ event: "job.progress", outcome: "dropped" }),
    });
  }

  /** Goes on where the last process ended. Once the engine has counted. */
  async start(): Promise<void> {
    for await (const delivery of this.#log.all()) if (delivery.status === "pending") this.#deliverer.resume(delivery);
    this.#unsubscribe = this.#parts.jobs.onChange((news) => this.#hear(news));
    await this.#watch.start();
    this.#prune();
  }

  /** What runs is waited for; what waits is the next process's. */
  async close(): Promise<void> {
    this.#unsubscribe();
    this.#cancelPruning();
    this.#progress.stop();
    await this.#watch.stop();
    await this.#deliverer.stop();
    await this.#pruning;
    await this.#receivers.close();
  }

  /** Newest first. */
  async deliveries(jobId: string, { status, after, max }: DeliveryFilter): Promise<readonly Delivery[]> {
    const found: Delivery[] = [];
    for await (const delivery of this.#log.of(jobId)) found.push(delivery);
    found.sort(newestFirst);
    const start = after === undefined ? 0 : found.findIndex(({ id }) => id === after) + 1;
    const wanted =
      status === undefined ? found.slice(start) : found.slice(start).filter((one) => one.status === status);
    return wanted.slice(0, max);
  }

  async delivery(id: string): Promise<Delivery | undefined> {
    return this.#log.get(id);
  }

  /** Makes it again, now, whatever came of it. */
  async redeliver(delivery: Delivery): Promise<Delivery> {
    return this.#deliverer.redeliver(delivery);
  }

  #hear(news: JobNews): void {
    const { record, status } = news.job;
    if (record.webhook === null) return;
    if (news.type === "removed") void this.#forget(record.id);
    const { events } = record.webhook;
    const wanted = events.length === 0 || events.includes("job.progress");
    if (status !== "running" || news.type === "removed") this.#progress.forget(record.id);
    else if (wanted && news.type !== "accepted" && !this.#watch.isStopped(record.id)) this.#progress.offer(news.job);
  }

  /** What cannot be removed now, the next pruning finds. */
  async #forget(jobId: string): Promise<void> {
    try {
      await this.#deliverer.forgetJob(jobId);
    } catch (error) {
      this.#note(error);
    }
  }

  async #callProgress(job: JobView): Promise<void> {
    const { id: jobId, tenant, webhook } = job.record;
    const atMs = this.#parts.clock.nowMs();
    const body = callBody("job.progress", { job, atMs });
    const call = { id: deliveryId(jobId, `progress ${job.sequence} ${atMs}`), tenant, url: webhook!.url, body };
    try {
      const { result } = await this.#deliverer.send(call);
      const outcome = result.outcome.kind === "gone" ? "stopped" : result.outcome.kind;
      this.#metrics.calls.inc({ event: "job.progress", outcome });
      if (result.outcome.kind === "gone") this.#gone(jobId);
    } catch (error) {
      this.#note(error); // the secret cannot be read now; the next progress is another call
    }
  }

  #gone(jobId: string): void {
    this.#progress.forget(jobId);
    this.#watch.stopHook(jobId);
  }

  /** Once an hour: what the log has kept for long enough, and what jobs left behind. */
  #prune(): void {
    this.#pruning = this.#pruneLog().catch((error: unknown) => this.#note(error));
    this.#cancelPruning = this.#parts.clock.after(HOUR_MS, () => this.#prune());
  }

  async #pruneLog(): Promise<void> {
    const { clock, jobs } = this.#parts;
    const ended = new Map<string, Delivery[]>();
    const remove: Delivery[] = [];
    for await (const delivery of this.#log.all()) {
      const job = jobs.get(delivery.jobId);
      if (job === undefined || (delivery.status !== "pending" && clock.nowMs() - delivery.askedAtMs > KEPT_MS)) {
        remove.push(delivery);
      } else if (delivery.status !== "pending") {
        const ofJob = ended.get(delivery.jobId);
        if (ofJob === undefined) ended.set(delivery.jobId, [delivery]);
        else ofJob.push(delivery);
      }
    }
    for (const ofJob of ended.values()) remove.push(...ofJob.sort(newestFirst).slice(KEPT_MAX));
    for (const delivery of remove) await this.#log.remove(delivery);
  }

  #note(error: unknown): void {
    if (!(error instanceof ServingError)) throw error;
    this.#parts.logger.warn({ err: error }, "webhooks wait for their records");
  }
}

const newestFirst = (a: Delivery, b: Delivery) => b.createdAtMs - a.createdAtMs || (a.id < b.id ? 1 : -1);
