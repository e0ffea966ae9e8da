import { type Clock, type Random, ServingError } from "@atelier/core";
import { currentSpan, inScope, type Logger, startSpan } from "@atelier/telemetry";
import type { CallReceiver, CallResult } from "./call-receiver.ts";
import { CallSlots } from "./call-slots.ts";
import { ATTEMPTS_KEPT, type Delivery } from "./delivery.ts";
import type { DeliveryLog } from "./delivery-log.ts";
import { afterAttempt } from "./retry-schedule.ts";
import type { SigningSecrets } from "./signing-secrets.ts";
import type { WebhookMetrics } from "./webhook-metrics.ts";

export interface DelivererParts {
  readonly log: DeliveryLog;
  readonly secrets: SigningSecrets;
  readonly call: CallReceiver;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly metrics: WebhookMetrics;
  /** The receiver of a job's calls wants no more of them. */
  readonly onGone: (jobId: string) => void;
}

const CALLS_MAX = 32;
const CALLS_PER_HOST_MAX = 4;
/** What waits is held in memory, about 2 KB each. Beyond it jobs keep what they have to tell in the event log. */
export const PENDING_MAX = 10_000;
/** The records cannot be reached: after this they are asked again. */
const RECORD_RETRY_MS = 2_000;

/** Makes the calls that are due, and keeps what came of them. Loaded from the log at start: a restart forgets none. */
export class Deliverer {
  readonly #parts: DelivererParts;
  readonly #slots = new CallSlots({ max: CALLS_MAX, perHostMax: CALLS_PER_HOST_MAX });
  /** By id, in the order that they came. */
  readonly #pending = new Map<string, { readonly delivery: Delivery; readonly host: string }>();
  readonly #calling = new Set<string>();
  /** Of those that run. */
  readonly #forgotten = new Set<string>();
  readonly #running = new Set<Promise<void>>();
  #cancelTimer: () => void = () => {};
  #stopped = false;

  constructor(parts: DelivererParts) {
    this.#parts = parts;
  }

  get pending(): number {
    return this.#pending.size;
  }

  get full(): boolean {
    return this.#pending.size >= PENDING_MAX;
  }

  /** Goes on with what the log has as pending. */
  resume(delivery: Delivery): void {
    this.#await(delivery);
    this.#schedule();
  }

  /** Takes a call on: it is kept when this resolves, and made at once or as soon as it can be. */
  async add(delivery: Delivery): Promise<void> {
    await this.#parts.log.put(delivery);
    this.resume(delivery);
  }

  /** As `add`, where the log does not have it yet: what is found to be told a second time was taken on before. */
  async addOnce(delivery: Delivery): Promise<void> {
    if (this.#pending.has(delivery.id) || (await this.#parts.log.get(delivery.id)) !== undefined) return;
    await this.add(delivery);
  }

  /** Makes an ended call anew, or one that waits at once. @throws STORAGE_UNAVAILABLE. */
  async redeliver(delivery: Delivery): Promise<Delivery> {
    const nowMs = this.#parts.clock.nowMs();
    // Whoever asks for it wants it tried as a new one is.
    const again: Delivery = { ...delivery, status: "pending", nextAtMs: nowMs, askedAtMs: nowMs, tries: 0 };
    if (!this.#calling.has(delivery.id)) await this.add(again);
    return again;
  }

  /** Ends what waits for a job whose receiver wants no more. */
  async dropJob(jobId: string): Promise<void> {
    for (const delivery of this.#takeWaiting(jobId)) {
      await this.#parts.log.put({ ...delivery, status: "stopped", nextAtMs: null });
    }
  }

  /** The job is gone: what waits for it is not made, and what came of calls that run is not kept. */
  async forgetJob(jobId: string): Promise<void> {
    this.#takeWaiting(jobId);
    for (const { delivery } of this.#pending.values()) {
      if (delivery.jobId === jobId) this.#forgotten.add(delivery.id);
    }
    for await (const delivery of this.#parts.log.of(jobId)) await this.#parts.log.remove(delivery);
  }

  #takeWaiting(jobId: string): Delivery[] {
    const waiting = [...this.#pending.values()].map(({ delivery }) => delivery);
    const taken = waiting.filter((delivery) => delivery.jobId === jobId && !this.#calling.has(delivery.id));
    for (const { id } of taken) this.#pending.delete(id);
    return taken;
  }

  /** Begins no call any more, and waits for those that run. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#cancelTimer();
    await Promise.all(this.#running);
  }

  #await(delivery: Delivery): void {
    this.#pending.set(delivery.id, { delivery, host: new URL(delivery.url).host });
  }

  #schedule(): void {
    this.#cancelTimer();
    if (this.#stopped) return;
    const nowMs = this.#parts.clock.nowMs();
    let soonestMs = Number.POSITIVE_INFINITY;
    for (const { delivery, host } of this.#pending.values()) {
      if (this.#slots.full) break;
      if (this.#calling.has(delivery.id)) continue;
      if (delivery.nextAtMs! > nowMs) soonestMs = Math.min(soonestMs, delivery.nextAtMs!);
      else this.#begin(delivery, host); // where its host is busy, the end of a call there comes back here
    }
    if (soonestMs < Number.POSITIVE_INFINITY) {
      this.#cancelTimer = this.#parts.clock.after(soonestMs - nowMs, () => this.#schedule());
    }
  }

  #begin(delivery: Delivery, host: string): void {
    if (!this.#slots.take(host)) return;
    this.#calling.add(delivery.id);
    const run = this.#make(delivery)
      .catch((error: unknown) => this.#putOff(delivery, error))
      .finally(() => {
        this.#running.delete(run);
        this.#calling.delete(delivery.id);
        this.#slots.free(host);
        this.#schedule();
      });
    this.#running.add(run);
  }

  /** Each attempt as a part of its job's trace. A job may fail thousands of times: those calls have traces of their own. */
  async #make(delivery: Delivery): Promise<void> {
    const { id, event, jobId, tenant, origin } = delivery;
    const trace = origin?.trace;
    const joins = event !== "job.item.failed";
    const attributes = {
      "atelier.webhook.event": event,
      "atelier.webhook.id": id,
      "atelier.job.id": jobId,
      "atelier.tenant": tenant,
      "server.address": new URL(delivery.url).host,
    };
    const span = startSpan(
      "webhook",
      { kind: "client", attributes, links: joins ? [] : [trace] },
      joins ? trace : undefined,
    );
    const fields = { tenant, ...(origin !== undefined && { request_id: origin.requestId }) };
    try {
      await inScope({ fields, span }, () => this.#attempt(delivery));
    } catch (error) {
      span.fail(error);
      throw error;
    } finally {
      span.end();
    }
  }

  async #attempt(delivery: Delivery): Promise<void> {
    const { clock, random, metrics, onGone } = this.#parts;
    const { result, latencyMs } = await this.send(delivery);
    const nowMs = clock.nowMs();
    const tries = delivery.tries + 1;
    const next = afterAttempt(result.outcome, { tries, askedAtMs: delivery.askedAtMs, nowMs }, random);
    const { status, error, excerpt } = result;
    currentSpan().set({ "http.response.status_code": status ?? undefined, "atelier.webhook.attempt": tries });
    if (error !== null && error !== undefined) currentSpan().set({ "error.type": result.outcome.kind });
    const attempt = { atMs: nowMs - latencyMs, latencyMs, status, error, excerpt };
    const after: Delivery = {
      ...delivery,
      ...(next.do === "retry" ? { nextAtMs: next.atMs } : { status: next.status, nextAtMs: null }),
      attemptCount: delivery.attemptCount + 1,
      tries,
      attempts: [...delivery.attempts, attempt].slice(-ATTEMPTS_KEPT),
    };
    metrics.calls.inc({ event: delivery.event, outcome: next.do === "retry" ? "retried" : next.status });
    if (this.#forgotten.delete(delivery.id)) {
      this.#pending.delete(delivery.id);
      return;
    }
    // Nothing else is done for this host in its place until it is kept: a restart would make the call again.
    await this.#keep(after);
    if (next.do === "retry") this.#await(after);
    else this.#pending.delete(delivery.id);
    if (result.outcome.kind !== "gone") return;
    onGone(delivery.jobId);
    await this.dropJob(delivery.jobId);
  }

  async #keep(delivery: Delivery): Promise<void> {
    const { log, clock, logger } = this.#parts;
    while (true) {
      try {
        return await log.put(delivery);
      } catch (error) {
        if (!(error instanceof ServingError) || this.#stopped) throw error;
        logger.warn({ delivery: delivery.id, err: error }, "what came of a webhook call cannot be kept yet");
        await new Promise<void>((resolve) => clock.after(RECORD_RETRY_MS, resolve));
      }
    }
  }

  /** One attempt, without a trace in the log: also for calls that are not kept. */
  async send({ id, tenant, url, body }: Pick<Delivery, "id" | "tenant" | "url" | "body">): Promise<{
    readonly result: CallResult;
    readonly latencyMs: number;
  }> {
    const { clock, secrets, call, metrics } = this.#parts;
    const headers = await secrets.headers(tenant, { id, body });
    const startedMs = clock.nowMs();
    const result = await call({ url, headers, body });
    const latencyMs = clock.nowMs() - startedMs;
    metrics.callSeconds.observe(latencyMs / 1_000);
    return { result, latencyMs };
  }

  /** Not even begun, since the secret could not be read. */
  #putOff(delivery: Delivery, error: unknown): void {
    if (!(error instanceof ServingError)) throw error;
    this.#parts.logger.warn({ delivery: delivery.id, err: error }, "a webhook call is put off");
    this.#await({ ...delivery, nextAtMs: this.#parts.clock.nowMs() + RECORD_RETRY_MS });
  }
}
