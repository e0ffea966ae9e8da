import { type Clock, ServingError } from "@atelier/core";
import type { EventLog, Records } from "@atelier/job-queue";
import type { Logger } from "@atelier/telemetry";
import type { JobNews, Jobs, JobView } from "../ports.ts";
import { callBody, type FailedItem } from "./call-body.ts";
import type { Deliverer } from "./deliverer.ts";
import { type Delivery, deliveryId } from "./delivery.ts";
import { changesTo, type HookState, NOTHING_TOLD } from "./hook-state.ts";
import type { WebhookEvent } from "./hook-url.ts";

export interface HookWatchParts {
  readonly jobs: Jobs;
  readonly events: EventLog;
  readonly records: Records;
  readonly deliverer: Deliverer;
  readonly clock: Clock;
  readonly logger: Logger;
}

interface Watched {
  state: HookState;
  /** Failed items that were heard of and are still to be told. */
  failures: { readonly sequence: number; readonly item: FailedItem }[];
  /** There are more than were kept here, or nobody listened: the event log has them. */
  behind: boolean;
  running: boolean;
  again: boolean;
}

const PREFIX = "webhooks.jobs.";
const FAILURES_HELD_MAX = 1_000;
/** Told between two notes of how far it is; after a crash so many are found to be told, and are the same deliveries. */
const BATCH_MAX = 100;
/** The deliverer is full, or the records cannot be reached. */
const RETRY_MS = 1_000;
const PAGE_MAX = 500;

/** Turns what happens to jobs into deliveries. What was told is kept, so that a restart goes on from there. */
export class HookWatch {
  readonly #parts: HookWatchParts;
  readonly #watched = new Map<string, Watched>();
  #unsubscribe: () => void = () => {};
  #stopping = false;
  readonly #running = new Set<Promise<void>>();

  constructor(parts: HookWatchParts) {
    this.#parts = parts;
  }

  /** Tells what happened while nobody was here, and what happens from now on. */
  async start(): Promise<void> {
    const { jobs, records } = this.#parts;
    const states = new Map<string, HookState>();
    for await (const { key, value } of records.list(PREFIX)) states.set(key.slice(PREFIX.length), JSON.parse(value));
    this.#unsubscribe = jobs.onChange((news) => this.#hear(news));
    for (const job of allJobs(jobs)) {
      const { id, webhook } = job.record;
      if (webhook === null) continue;
      const state = states.get(id) ?? NOTHING_TOLD;
      this.#watched.set(id, { state, failures: [], behind: true, running: false, again: false });
      states.delete(id);
      this.#tell(id);
    }
    for (const id of states.keys()) this.#forget(id); // of jobs that were deleted while nobody was here
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#unsubscribe();
    await Promise.all(this.#running);
  }

  /** Whether its receiver wanted no more. */
  isStopped(jobId: string): boolean {
    return this.#watched.get(jobId)?.state.stopped ?? false;
  }

  stopHook(jobId: string): void {
    const watched = this.#watched.get(jobId);
    if (watched === undefined) return;
    watched.state = { ...watched.state, stopped: true };
    this.#tell(jobId);
  }

  #hear(news: JobNews): void {
    const { id, webhook } = news.job.record;
    if (webhook === null) return;
    if (news.type === "removed") {
      this.#forget(id);
      return;
    }
    const watched = this.#watchedOf(id);
    const failure = news.type === "item" && news.state === "failed" && wants(news.job, "job.item.failed");
    if (failure) this.#hearFailure(news, watched);
    if (failure || changesTo(news.job, watched.state).changes.length > 0) this.#tell(id);
  }

  #hearFailure({ job, itemIndex, sequence }: Extract<JobNews, { type: "item" }>, watched: Watched): void {
    if (watched.behind || sequence <= watched.state.cursor) return;
    const reason = this.#parts.jobs.states(job.record.id)?.reason(itemIndex);
    if (watched.failures.length >= FAILURES_HELD_MAX || reason === undefined) watched.behind = true;
    else watched.failures.push({ sequence, item: { index: itemIndex, ...reason } });
  }

  #watchedOf(id: string): Watched {
    const watched = this.#watched.get(id);
    if (watched !== undefined) return watched;
    const fresh = { state: NOTHING_TOLD, failures: [], behind: false, running: false, again: false };
    this.#watched.set(id, fresh);
    return fresh;
  }

  /** One after another for a job, whatever comes meanwhile. */
  #tell(id: string): void {
    const watched = this.#watched.get(id);
    if (watched === undefined || this.#stopping) return;
    watched.again = true;
    if (watched.running) return;
    watched.running = true;
    const run = this.#tellAll(id, watched).finally(() => {
      watched.running = false;
      this.#running.delete(run);
    });
    this.#running.add(run);
  }

  async #tellAll(id: string, watched: Watched): Promise<void> {
    while (watched.again && !this.#stopping) {
      watched.again = false;
      try {
        const job = this.#parts.jobs.get(id);
        if (job !== undefined && this.#watched.get(id) === watched) await this.#tellOf(job, watched);
      } catch (error) {
        if (!(error instanceof ServingError)) throw error;
        this.#parts.logger.warn({ job: id, err: error }, "a job's webhook calls are put off");
        watched.again = true;
        await this.#pause();
      }
    }
  }

  async #tellOf(job: JobView, watched: Watched): Promise<void> {
    if (watched.state.stopped) {
      watched.failures = [];
      watched.behind = false;
      return this.#keep(job, watched.state);
    }
    if (wants(job, "job.item.failed")) await this.#tellFailures(job, watched);
    const before = watched.state;
    const { changes, state } = changesTo(job, before);
    if (changes.length === 0) return;
    for (const [i, { event, atMs }] of changes.entries()) {
      if (wants(job, event)) await this.#add(job, { event, what: `${event} ${before.changes + i}`, atMs });
    }
    watched.state = { ...state, stopped: watched.state.stopped }; // its receiver may have had enough meanwhile
    await this.#keep(job, watched.state);
  }

  async #tellFailures(job: JobView, watched: Watched): Promise<void> {
    while (watched.failures.length > 0) {
      const batch = watched.failures.slice(0, BATCH_MAX);
      for (const { sequence, item } of batch) await this.#addFailure(job, sequence, item, null);
      await this.#advance(job, watched, batch.at(-1)!.sequence);
      watched.failures.splice(0, batch.length);
    }
    while (watched.behind) {
      const from = watched.state.cursor;
      let last = from;
      let told = 0;
      const seen = new Set<string>(); // an outcome that is repeated is one
      for await (const { sequence, event } of this.#parts.events.read(job.record.id, from)) {
        last = sequence;
        if (event.event.case !== "outcome" || event.event.value.result.case !== "failed") continue;
        const { itemIndex: index, round, attempts, result } = event.event.value;
        if (seen.size === seen.add(`${index} ${round}`).size) continue;
        const { code, message } = result.value;
        await this.#addFailure(job, sequence, { index, code, message, attempts }, Number(event.atMs));
        if (++told % BATCH_MAX === 0) await this.#advance(job, watched, sequence);
        if (this.#stopping) return;
      }
      if (last !== from) await this.#advance(job, watched, last);
      // What comes in beyond what was read is heard of again.
      watched.behind = last !== from && (this.#parts.jobs.get(job.record.id)?.sequence ?? 0) > last;
    }
  }

  async #addFailure(job: JobView, sequence: number, item: FailedItem, atMs: number | null): Promise<void> {
    await this.#add(job, { event: "job.item.failed", what: `item.failed ${sequence}`, atMs, item });
  }

  async #advance(job: JobView, watched: Watched, cursor: number): Promise<void> {
    watched.state = { ...watched.state, cursor };
    await this.#keep(job, watched.state);
  }

  async #add(
    job: JobView,
    { event, what, atMs, item }: { event: WebhookEvent; what: string; atMs: number | null; item?: FailedItem },
  ): Promise<void> {
    const { clock, deliverer } = this.#parts;
    // Changes of the job's own are few and are let in always.
    while (item !== undefined && deliverer.full && !this.#stopping) await this.#pause();
    const { id, tenant, webhook, origin } = job.record;
    const nowMs = clock.nowMs();
    const delivery: Delivery = {
      id: deliveryId(id, what),
      jobId: id,
      tenant,
      event,
      url: webhook!.url,
      body: callBody(event, { job, atMs: atMs ?? nowMs, ...(item !== undefined && { item }) }),
      createdAtMs: nowMs,
      status: "pending",
      nextAtMs: nowMs,
      attemptCount: 0,
      askedAtMs: nowMs,
      tries: 0,
      attempts: [],
      ...(origin !== undefined && { origin }),
    };
    await deliverer.addOnce(delivery);
  }

  async #keep(job: JobView, state: HookState): Promise<void> {
    await this.#parts.records.put(`${PREFIX}${job.record.id}`, JSON.stringify(state));
  }

  #forget(id: string): void {
    this.#watched.delete(id);
    const run = this.#parts.records
      .remove(`${PREFIX}${id}`)
      .catch((error: unknown) => this.#parts.logger.warn({ job: id, err: error }, "a webhook's state stays behind"))
      .finally(() => this.#running.delete(run));
    this.#running.add(run);
  }

  #pause(): Promise<void> {
    return new Promise((resolve) => this.#parts.clock.after(RETRY_MS, resolve));
  }
}

function wants({ record: { webhook } }: JobView, event: WebhookEvent): boolean {
  return webhook !== null && (webhook.events.length === 0 || webhook.events.includes(event));
}

function* allJobs(jobs: Jobs): Iterable<JobView> {
  for (let page = jobs.list({ max: PAGE_MAX }); page.length > 0; ) {
    yield* page;
    page = jobs.list({ max: PAGE_MAX, after: page.at(-1)!.record.id });
  }
}
