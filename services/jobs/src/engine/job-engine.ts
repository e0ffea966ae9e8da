import { type Clock, invariant, ServingError, toServingError } from "@atelier/core";
import type { JobQueue, Kept, LoggedEvent } from "@atelier/job-queue";
import { type ItemProgress, type JobEvent, JobEventSchema, JobStatus, type WorkItem } from "@atelier/proto";
import type { Logger } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import { delay } from "../delay.ts";
import { type ItemState, JOB_PRIORITIES, type JobPriority, type JobRecord } from "../job.ts";
import type { ItemSource, ItemStates, JobFilter, JobNews, Jobs, JobView, UsageTotal } from "../ports.ts";
import { FairShare } from "./fair-share.ts";
import { ItemFeed } from "./item-feed.ts";
import { KeptJob, laneOf } from "./kept-job.ts";
import { Lanes } from "./lanes.ts";
import { Turn } from "./turn.ts";
import { workItemOf } from "./work-item.ts";

export interface JobEngineOptions {
  readonly queue: JobQueue;
  readonly items: ItemSource;
  readonly clock: Clock;
  readonly log: Logger;
  /** All items of a job have ended, and nothing says so yet: what has to be there before somebody is told. May be called again. */
  readonly beforeEnd: (jobId: string) => Promise<void>;
  /** Deletes all objects of a job. May be called again. */
  readonly removeObjects: (jobId: string) => Promise<void>;
  /** How long a worker has an item without being heard of. */
  readonly leaseMs: number;
  /** Jobs are deleted so long after their end, unless they say otherwise. */
  readonly keptMs: number;
}

export interface EndedItem {
  readonly state: ItemState;
  readonly attempts: number;
  readonly deadLetter: boolean;
}

/** What an event tells of a job. */
interface Change {
  readonly status: JobStatus;
  readonly retriedItems?: number;
  readonly retriedItemIndexes?: number[];
}

/** In one call to the queue. */
const PUBLISH_ITEMS_MAX = 256;
/** Workers report twice a second: whoever is at an item was heard of in this time. */
const QUIET_MS = 1_500;
const SWEEP_MS = 1_000;
const TELL_MS = 500;
const RETRY_MS = 1_000;
/** A command is in effect when its event came back from the log. */
const COMMAND_MS = 10_000;
const RECORD_PREFIX = "jobs.";

/**
 * All jobs: takes their events in, hands their items out, and carries out what their owners wish.
 *
 * What it knows it has from records and events; what it hands out it remembers only until it ends. So whatever may have been
 * handed out before a start, a pause or a loss is *recalled*: withdrawn from the queue, and given a newer round when it is
 * handed out again. Items that a worker is heard to be at are left to it.
 */
export class JobEngine implements Jobs {
  readonly #options: JobEngineOptions;
  readonly #jobs = new Map<string, KeptJob>();
  readonly #listeners = new Set<(change: JobNews) => void>();
  readonly #shares: Record<JobPriority, FairShare> = { standard: new FairShare(), bulk: new FairShare() };
  readonly #lanes = new Lanes();
  readonly #held = new Map<string, string>();
  readonly #stop = new AbortController();
  /** Publishing and commands take turns: nothing is handed out of a job while it is taken back. */
  readonly #turn = new Turn();
  readonly #waiters = new Set<(event: JobEvent) => void>();
  readonly #ends: (() => void)[] = [];
  /** Told of each item that ends while this process looks on. Must not throw. */
  onOutcome: (ended: EndedItem) => void = () => {};
  #sequence = 0;
  /** The log was read up to where it was at the start: from then on it is news. */
  #live = false;
  #trouble: string | undefined;
  #wake = Promise.withResolvers<void>();
  #loops: Promise<void>[] = [];

  constructor(options: JobEngineOptions) {
    this.#options = options;
  }

  /** Reads all there is, counts, and goes on with it. Rejects with STORAGE_UNAVAILABLE where that cannot be read. */
  async start(): Promise<void> {
    const { queue } = this.#options;
    for await (const kept of queue.records.list(RECORD_PREFIX)) this.#keep(kept);
    const until = await queue.events.lastSequence();
    const caughtUp = Promise.withResolvers<void>();
    this.#loops.push(this.#follow(until, () => caughtUp.resolve()));
    await Promise.race([caughtUp.promise, aborted(this.#stop.signal)]);
    this.#live = true;
    this.#ends.push(queue.work.onProgress((progress) => this.#heard(progress)));
    this.#ends.push(queue.work.onLost(() => void this.#recallAll("the work queue was made anew")));
    await this.#recallAll("start");
    this.#loops.push(this.#release(), this.#sweep());
  }

  /** What keeps it from going on; undefined: nothing. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  async close(): Promise<void> {
    this.#stop.abort(new ServingError("DRAINING", "the jobs service stops"));
    for (const end of this.#ends) end();
    this.#wake.resolve();
    await Promise.all(this.#loops);
  }

  async accept(record: JobRecord): Promise<void> {
    this.#checkOpen();
    const { queue } = this.#options;
    const revision = await queue.records.put(RECORD_PREFIX + record.id, JSON.stringify(record), 0);
    const job = new KeptJob(record, revision);
    this.#jobs.set(record.id, job);
    this.#tell({ type: "accepted", job: this.#view(job) });
    this.#wake.resolve();
  }

  get(id: string): JobView | undefined {
    const job = this.#jobs.get(id);
    return job === undefined || job.record.deleting ? undefined : this.#view(job);
  }

  list({ tenant, status, after, name, max }: JobFilter): readonly JobView[] {
    const jobs = [...this.#jobs.values()].filter(({ record }) => !record.deleting).sort(newestFirst);
    const from = after === undefined ? 0 : jobs.findIndex(({ record }) => record.id === after) + 1;
    const found: JobView[] = [];
    for (const job of jobs.slice(from)) {
      if (found.length === max) break;
      const { record } = job;
      if (tenant !== undefined && record.tenant !== tenant) continue;
      if (status !== undefined && job.status !== status) continue;
      if (name !== undefined && !record.name.toLowerCase().includes(name.toLowerCase())) continue;
      found.push(this.#view(job));
    }
    return found;
  }

  states(id: string): ItemStates | undefined {
    return this.#jobs.get(id)?.ledger;
  }

  onChange(listener: (change: JobNews) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  pause(id: string): Promise<JobView> {
    return this.#command(id, "paused", ["queued", "running", "paused"], async (job) => {
      if (job.record.wish === "pause") return undefined;
      await this.#recall(job, { wish: "pause", pausedFor: null }, { stop: false });
      return { status: JobStatus.PAUSED };
    });
  }

  resume(id: string): Promise<JobView> {
    return this.#command(id, "resumed", ["queued", "running", "paused"], async (job) => {
      if (job.record.wish === "run") return undefined;
      await this.#save(job, { wish: "run", pausedFor: null });
      return { status: JobStatus.RUNNING };
    });
  }

  cancel(id: string): Promise<JobView> {
    return this.#command(id, "cancelled", ["queued", "running", "paused", "cancelled"], async (job) => {
      if (job.ledger.endedAtMs !== undefined && job.record.wish === "cancel") return undefined;
      await this.#recall(job, { wish: "cancel" }, { stop: true });
      return { status: JobStatus.CANCELLED };
    });
  }

  setPriority(id: string, priority: JobPriority): Promise<JobView> {
    return this.#command(id, "given another priority", ["queued", "running", "paused"], async (job) => {
      if (job.record.priority === priority) return undefined;
      this.#shares[job.record.priority].forget({ jobId: id, tenant: job.record.tenant });
      await this.#recall(job, { priority }, { stop: false });
      return { status: statusNumber(job) };
    });
  }

  async retry(id: string, itemIndexes?: readonly number[]): Promise<{ job: JobView; items: number }> {
    let items = 0;
    const job = await this.#command(id, "retried", ["running", "paused", "done"], async ({ ledger, record }) => {
      for (const index of itemIndexes ?? []) {
        if (index < record.itemCount && ledger.of(index) === "failed") continue;
        const state = index < record.itemCount ? ledger.of(index) : "not there";
        throw new ServingError("CONFLICT", `item ${index} is ${state}: only failed items are retried`, {
          field: "items",
        });
      }
      items = itemIndexes?.length ?? ledger.counts.failed;
      if (items === 0) return undefined;
      await this.#options.queue.work.removeDeadLetters(id, itemIndexes);
      return { status: JobStatus.RUNNING, retriedItems: items, retriedItemIndexes: [...(itemIndexes ?? [])] };
    });
    return { job, items };
  }

  async remove(id: string): Promise<void> {
    this.#checkOpen();
    const job = await this.#turn.take(async () => {
      const found = this.#job(id);
      await this.#recall(
        found,
        { wish: found.status === "done" ? found.record.wish : "cancel", deleting: true },
        { stop: true },
      );
      return found;
    });
    await this.#removeAll(job);
  }

  /** None of the tenant's items are handed out while there is a reason; null: they are again. */
  hold(tenant: string, reason: string | null): void {
    const before = this.#held.get(tenant) ?? null;
    if (before === reason) return;
    if (reason === null) this.#held.delete(tenant);
    else this.#held.set(tenant, reason);
    this.#options.log.info({ tenant, reason }, reason === null ? "jobs go on" : "jobs are held");
    for (const job of this.#jobs.values()) {
      if (job.record.tenant === tenant && job.wantsWork) this.#tell({ type: "changed", job: this.#view(job) });
    }
    this.#wake.resolve();
  }

  /** What all jobs have used so far. */
  *usage(): IterableIterator<UsageTotal> {
    for (const { record, ledger } of this.#jobs.values()) {
      const { id: jobId, tenant, keyId } = record;
      for (const [model, { images, deviceMs }] of ledger.used) yield { jobId, tenant, keyId, model, images, deviceMs };
    }
  }

  /** For metrics. */
  *kept(): IterableIterator<KeptJob> {
    yield* this.#jobs.values();
  }

  // Events

  async #follow(until: number, caughtUp: () => void): Promise<void> {
    if (until === 0) caughtUp();
    while (!this.#stop.signal.aborted) {
      try {
        for await (const batch of this.#options.queue.events.follow(this.#sequence, this.#stop.signal)) {
          this.#relieved();
          this.#applyAll(batch);
          if (this.#sequence >= until) caughtUp();
        }
      } catch (error) {
        if (!this.#stop.signal.aborted) await this.#troubled("reading the event log", error);
      }
    }
  }

  #applyAll(batch: readonly LoggedEvent[]): void {
    const touched = new Set<KeptJob>();
    for (const { sequence, event } of batch) {
      this.#sequence = Math.max(this.#sequence, sequence);
      const job = this.#jobs.get(event.jobId);
      if (job === undefined || sequence <= job.sequence) continue;
      job.sequence = sequence;
      touched.add(job);
      this.#apply(job, event, sequence);
    }
    if (!this.#live) return;
    for (const job of touched) {
      this.#tellProgress(job);
      this.#endIfAllEnded(job);
    }
    this.#wake.resolve();
  }

  #apply(job: KeptJob, event: JobEvent, sequence: number): void {
    const ended = job.ledger.apply(event);
    if (ended !== undefined) {
      const nowMs = this.#options.clock.nowMs();
      const result = event.event.case === "outcome" ? event.event.value.result : undefined;
      const deviceMs = result?.case === "done" ? (result.value.receipt?.deviceMs ?? 0) : 0;
      if (this.#live) job.pace.note(nowMs, deviceMs);
      const lane = job.outLanes.get(ended);
      if (lane !== undefined) this.#lanes.ended(lane, nowMs);
      job.outLanes.delete(ended);
      job.stragglers.delete(ended);
      if (this.#live) {
        const state = job.ledger.of(ended);
        const attempts = event.event.case === "outcome" ? event.event.value.attempts : 1;
        this.onOutcome({ state, attempts, deadLetter: result?.case === "failed" && result.value.deadLetter });
        this.#tell({ type: "item", job: this.#view(job), itemIndex: ended, state, sequence });
      }
    }
    if (event.event.case !== "change") return;
    if (!this.#live) return;
    const { status } = event.event.value;
    const type = status === JobStatus.DONE || status === JobStatus.CANCELLED ? "ended" : "changed";
    this.#tell({ type, job: this.#view(job) });
    for (const waiter of this.#waiters) waiter(event);
  }

  #endIfAllEnded(job: KeptJob): void {
    const { ledger, record } = job;
    if (!ledger.ended || ledger.endedAtMs !== undefined || record.wish === "cancel" || record.deleting || job.ending)
      return;
    job.ending = true;
    void this.#end(job).finally(() => {
      job.ending = false;
    });
  }

  async #end(job: KeptJob): Promise<void> {
    this.#shares[job.record.priority].forget({ jobId: job.record.id, tenant: job.record.tenant });
    job.feed = undefined;
    while (!this.#stop.signal.aborted && !job.record.deleting) {
      try {
        await this.#options.beforeEnd(job.record.id);
        const event = this.#changeOf(job, { status: JobStatus.DONE });
        return await this.#options.queue.events.append(event, `${job.record.id}.done.${job.sequence}`);
      } catch (error) {
        await this.#troubled(`ending job ${job.record.id}`, error);
      }
    }
  }

  #heard({ jobId, itemIndex, stepsDone, stepsTotal, workerId }: ItemProgress): void {
    const job = this.#jobs.get(jobId);
    if (job === undefined || job.record.deleting || job.record.wish === "cancel") return;
    const waited = job.ledger.of(itemIndex) === "queued" && !job.outLanes.has(itemIndex);
    job.ledger.heard(itemIndex, { stepsDone, stepsTotal, workerId, heardAtMs: this.#options.clock.nowMs() });
    // Handed out before, and taken back without its worker.
    if (waited) job.stragglers.add(itemIndex);
    this.#tellProgress(job);
  }

  // Handing out

  async #release(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const wake = this.#wake.promise;
      try {
        if (await this.#turn.take(() => this.#handOut())) continue;
        this.#relieved();
      } catch (error) {
        await this.#troubled("handing items out", error);
        continue;
      }
      await wake;
      this.#wake = Promise.withResolvers();
    }
  }

  /** One batch, as far as the windows go; false where there was nothing to hand out. */
  async #handOut(): Promise<boolean> {
    if (this.#stop.signal.aborted) return false;
    const batch: { readonly job: KeptJob; readonly work: WorkItem }[] = [];
    try {
      for (const priority of JOB_PRIORITIES) await this.#choose(priority, batch);
    } finally {
      // What was chosen is handed out even where choosing more failed.
      if (batch.length > 0) await this.#publish(batch);
    }
    return batch.length === PUBLISH_ITEMS_MAX;
  }

  async #choose(priority: JobPriority, batch: { job: KeptJob; work: WorkItem }[]): Promise<void> {
    const nowMs = this.#options.clock.nowMs();
    const share = this.#shares[priority];
    let claimants = [...this.#jobs.values()]
      .filter((job) => job.record.priority === priority && job.wantsWork && job.quietUntilMs <= nowMs)
      .filter(({ record }) => !this.#held.has(record.tenant))
      .map((job) => ({ job, jobId: job.record.id, tenant: job.record.tenant, weight: job.record.weight }));
    while (batch.length < PUBLISH_ITEMS_MAX) {
      const claimant = share.next(claimants);
      if (claimant === undefined) return;
      const { job } = claimant;
      const index = job.ledger.nextWaiting();
      const item = index === undefined ? undefined : await this.#read(job, index);
      const shape = item && job.record.shapes[item.shape]!;
      const lane = shape && laneOf(priority, shape.model);
      if (item === undefined || shape === undefined || lane === undefined || !this.#lanes.hasRoom(lane, nowMs)) {
        claimants = claimants.filter((other) => other !== claimant);
        continue;
      }
      job.ledger.handOut(item.index);
      job.outLanes.set(item.index, lane);
      this.#lanes.handedOut(lane);
      share.charge(claimant, Math.max(1, shape.predictedDeviceMs));
      batch.push({ job, work: workItemOf(job.record, item, job.ledger.roundOf(item.index, job.record.round)) });
    }
  }

  async #read(job: KeptJob, index: number) {
    job.feed ??= new ItemFeed(this.#options.items, job.record.id);
    return job.feed.peek(index) ?? (await job.feed.read(index));
  }

  async #publish(batch: readonly { readonly job: KeptJob; readonly work: WorkItem }[]): Promise<void> {
    try {
      await this.#options.queue.work.publish(batch.map(({ work }) => work));
    } catch (error) {
      // Some may be in the queue: published again with the same round they are still there once.
      for (const { job, work } of batch) this.#putBack(job, work.itemIndex);
      throw error;
    }
  }

  #putBack(job: KeptJob, index: number): void {
    job.ledger.putBack(index);
    job.stragglers.delete(index);
    const lane = job.outLanes.get(index);
    if (lane !== undefined) this.#lanes.putBack(lane);
    job.outLanes.delete(index);
  }

  // Taking back

  async #recallAll(why: string): Promise<void> {
    for (const job of [...this.#jobs.values()]) {
      if (job.record.deleting) {
        void this.#removeAll(job);
        continue;
      }
      if (job.ledger.ended || job.record.wish === "cancel") {
        this.#endIfAllEnded(job);
        if (job.record.wish === "cancel" && !job.ledger.ended) void this.#finishCancel(job);
        continue;
      }
      await this.#persistently(`recalling job ${job.record.id} (${why})`, () =>
        this.#turn.take(() => this.#recall(job, {}, { stop: false })),
      );
    }
    this.#wake.resolve();
  }

  /** A cancellation that a crash cut short. */
  async #finishCancel(job: KeptJob): Promise<void> {
    await this.#persistently(`cancelling job ${job.record.id}`, async () => {
      await this.#options.queue.work.withdraw(job.record.id, { stop: true });
      const event = this.#changeOf(job, { status: JobStatus.CANCELLED });
      await this.#options.queue.events.append(event, `${job.record.id}.cancelled`);
    });
  }

  /** Takes back what is handed out: a newer round first, so that nothing that is out can be taken for what comes. */
  async #recall(job: KeptJob, change: Partial<JobRecord>, options: { readonly stop: boolean }): Promise<void> {
    const { clock, queue } = this.#options;
    await this.#save(job, { ...change, round: job.ledger.newerRound(job.record.round) });
    await queue.work.withdraw(job.record.id, options);
    const nowMs = clock.nowMs();
    for (const index of [...job.ledger.outItems()]) {
      const heardAtMs = job.ledger.progress(index)?.heardAtMs ?? Number.NEGATIVE_INFINITY;
      if (heardAtMs < nowMs - this.#options.leaseMs || options.stop) this.#putBack(job, index);
      else job.stragglers.add(index);
    }
    job.quietUntilMs = nowMs + QUIET_MS;
    clock.after(QUIET_MS, () => this.#wake.resolve());
  }

  /** Looks after what nobody says anything about: stragglers, the age of jobs, progress that was not told yet. */
  async #sweep(): Promise<void> {
    const { clock, leaseMs, keptMs } = this.#options;
    while (!this.#stop.signal.aborted) {
      await delay(clock, SWEEP_MS, this.#stop.signal);
      const nowMs = clock.nowMs();
      for (const job of [...this.#jobs.values()]) {
        for (const index of job.stragglers) {
          const heardAtMs = job.ledger.progress(index)?.heardAtMs ?? 0;
          if (heardAtMs < nowMs - leaseMs) this.#putBack(job, index);
        }
        if (job.untold) this.#tellProgress(job);
        const { record, ledger, status } = job;
        const ended = (status === "done" || status === "cancelled") && ledger.endedAtMs !== undefined;
        if (ended && !record.deleting && nowMs > ledger.endedAtMs! + (record.deleteAfterMs ?? keptMs)) {
          await this.remove(record.id).catch((error: unknown) => this.#troubled(`deleting job ${record.id}`, error));
        }
      }
      await this.#findLost();
      this.#wake.resolve();
    }
  }

  /** What is out by our count and is neither waiting nor held in the queue, twice in a row, was taken out by hand. */
  async #findLost(): Promise<void> {
    const depths = await this.#options.queue.work.depths().catch(() => undefined);
    if (depths === undefined) return;
    const queued = depths.reduce((sum, { waiting, held }) => sum + waiting + held, 0);
    const out = [...this.#jobs.values()].reduce((sum, job) => sum + job.outLanes.size, 0);
    this.#emptySweeps = queued === 0 && out > 0 && this.#sequence === this.#sweptSequence ? this.#emptySweeps + 1 : 0;
    this.#sweptSequence = this.#sequence;
    if (this.#emptySweeps < EMPTY_SWEEPS) return;
    this.#emptySweeps = 0;
    this.#options.log.warn(
      { items: out },
      "items that were handed out are not in the queue any more: handing them out again",
    );
    await this.#recallAll("items are missing from the queue");
  }
  #emptySweeps = 0;
  #sweptSequence = 0;

  async #removeAll(job: KeptJob): Promise<void> {
    const { queue, clock, removeObjects, leaseMs } = this.#options;
    const { id } = job.record;
    await this.#persistently(`deleting job ${id}`, async () => {
      await removeObjects(id);
      await queue.work.removeDeadLetters(id);
      await queue.events.remove(id);
      await queue.records.remove(RECORD_PREFIX + id);
    });
    const view = this.#view(job);
    if (!this.#jobs.delete(id)) return;
    for (const share of Object.values(this.#shares)) share.forget({ jobId: id, tenant: job.record.tenant });
    this.#tell({ type: "removed", job: view });
    // A worker that could not be told may have written one more.
    const cancel = clock.after(leaseMs, () => void removeObjects(id).catch(() => {}));
    this.#ends.push(cancel);
  }

  // Commands

  /** Carries out a change of one job; resolves when the event that tells of it has come back from the log. */
  async #command(
    id: string,
    participle: string,
    allowed: readonly JobView["status"][],
    carryOut: (job: KeptJob) => Promise<Change | undefined>,
  ): Promise<JobView> {
    this.#checkOpen();
    const job = await this.#turn.take(async () => {
      const found = this.#job(id);
      if (!allowed.includes(found.status)) {
        throw new ServingError("CONFLICT", `job ${id} is ${found.status}, and cannot be ${participle}`);
      }
      const change = await carryOut(found);
      if (change !== undefined) await this.#appendAndWait(found, this.#changeOf(found, change));
      return found;
    });
    this.#wake.resolve();
    return this.#view(job);
  }

  async #appendAndWait(job: KeptJob, event: JobEvent): Promise<void> {
    const { clock, queue } = this.#options;
    const seen = Promise.withResolvers<void>();
    const waiter = (applied: JobEvent) => {
      if (applied.jobId === event.jobId && applied.event.case === "change" && applied.atMs === event.atMs)
        seen.resolve();
    };
    this.#waiters.add(waiter);
    const cancel = clock.after(COMMAND_MS, () =>
      seen.reject(new ServingError("STORAGE_UNAVAILABLE", "the event log took the change and has not shown it yet")),
    );
    try {
      await queue.events.append(event, `${job.record.id}.change.${event.atMs}.${job.record.round}`);
      await seen.promise;
    } finally {
      cancel();
      this.#waiters.delete(waiter);
    }
  }

  #changeOf({ record }: KeptJob, change: Change): JobEvent {
    const atMs = BigInt(Math.round(this.#options.clock.nowMs()));
    return create(JobEventSchema, { jobId: record.id, atMs, event: { case: "change", value: change } });
  }

  async #save(job: KeptJob, change: Partial<JobRecord>): Promise<void> {
    const record = { ...job.record, ...change };
    const { records } = this.#options.queue;
    job.revision = await records
      .put(RECORD_PREFIX + record.id, JSON.stringify(record), job.revision)
      .catch(async (error) => {
        // An answer that was lost: the revision that is there is ours, since nobody else writes.
        if (!(error instanceof ServingError) || error.code !== "CONFLICT") throw error;
        const kept = await records.get(RECORD_PREFIX + record.id);
        return records.put(RECORD_PREFIX + record.id, JSON.stringify(record), kept?.revision ?? 0);
      });
    job.record = record;
  }

  #keep({ value, revision }: Kept): void {
    const record = JSON.parse(value) as JobRecord;
    this.#jobs.set(record.id, new KeptJob(record, revision));
  }

  #job(id: string): KeptJob {
    const job = this.#jobs.get(id);
    if (job === undefined || job.record.deleting) throw new ServingError("NOT_FOUND", `there is no job ${id}`);
    return job;
  }

  #checkOpen(): void {
    this.#stop.signal.throwIfAborted();
    invariant(this.#live, "jobs are taken on once the log was read");
  }

  #view(job: KeptJob): JobView {
    return job.view(this.#options.clock.nowMs(), this.#held.get(job.record.tenant) ?? null);
  }

  // Telling

  #tellProgress(job: KeptJob): void {
    const nowMs = this.#options.clock.nowMs();
    job.untold = nowMs - job.toldMs < TELL_MS;
    if (job.untold) return;
    job.toldMs = nowMs;
    this.#tell({ type: "progress", job: this.#view(job) });
  }

  #tell(news: JobNews): void {
    for (const listener of this.#listeners) listener(news);
  }

  // Trouble

  async #persistently(what: string, run: () => Promise<unknown>): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        await run();
        return;
      } catch (error) {
        await this.#troubled(what, error);
      }
    }
  }

  /** Says so once, and waits a while. A bug is not waited for. */
  async #troubled(what: string, thrown: unknown): Promise<void> {
    const error = toServingError(thrown);
    if (error.code === "INTERNAL") this.#options.log.error({ err: thrown }, `${what} failed`);
    else if (this.#trouble !== error.detail) this.#options.log.warn({ reason: error.detail }, `${what} waits`);
    this.#trouble = error.detail;
    await delay(this.#options.clock, RETRY_MS, this.#stop.signal);
  }

  #relieved(): void {
    if (this.#trouble === undefined) return;
    this.#trouble = undefined;
    this.#options.log.info("jobs go on");
  }
}

/** Sweeps that find the queue empty before what is out is taken for lost: events may be on their way. */
const EMPTY_SWEEPS = 3;

function newestFirst(a: KeptJob, b: KeptJob): number {
  return b.record.createdAtMs - a.record.createdAtMs || (a.record.id < b.record.id ? -1 : 1);
}

function statusNumber(job: KeptJob): JobStatus {
  return {
    queued: JobStatus.QUEUED,
    running: JobStatus.RUNNING,
    paused: JobStatus.PAUSED,
    done: JobStatus.DONE,
    cancelled: JobStatus.CANCELLED,
  }[job.status];
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
