import { type Clock, invariant, newId, ServingError, sha256, toServingError } from "@atelier/core";
import type { JobQueue, Kept, LoggedEvent } from "@atelier/job-queue";
import { type ItemProgress, type JobEvent, JobEventSchema, JobStatus, type WorkItem } from "@atelier/proto";
import type { Logger } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import { delay } from "../delay.ts";
import { type ItemSpec, type ItemState, JOB_PRIORITIES, type JobPriority, type JobRecord } from "../job.ts";
import type { ItemSource, ItemStates, JobFilter, JobNews, Jobs, JobView, UsageTotal } from "../ports.ts";
import { FairShare } from "./fair-share.ts";
import { ItemFeed } from "./item-feed.ts";
import { KeptJob, laneOf } from "./kept-job.ts";
import { Lanes } from "./lanes.ts";
import { Turn } from "./turn.ts";
import { PRIORITY_CLASS, workItemOf } from "./work-item.ts";

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
  /** Sees items off to the queue, for traces; what it gives is told of the end. Must not throw. */
  readonly publishing?: (
    batch: readonly { readonly job: KeptJob; readonly work: WorkItem }[],
  ) => (failure?: unknown) => void;
}

export interface EndedItem {
  readonly state: ItemState;
  readonly attempts: number;
  readonly deadLetter: boolean;
  /** Of one that is done. */
  readonly made?: MadePicture | undefined;
}

/** What a picture took, and what that costs the job's tenant. */
export interface MadePicture {
  readonly model: string;
  readonly deviceMs: number;
  readonly cost: number;
  readonly currency: string;
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
/** What it may be kept from. */
const READING = "reading the event log";
const HANDING_OUT = "handing items out";
const QUEUE = "the queue";

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
  readonly #ends = new Set<() => void>();
  /** Told of each item that ends while this process looks on. Must not throw. */
  onOutcome: (ended: EndedItem) => void = () => {};
  #sequence = 0;
  /** The log was read up to where it was at the start: from then on it is news. */
  #live = false;
  /** What keeps it from going on, by what it was at. */
  readonly #troubles = new Map<string, string>();
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
    this.#ends.add(queue.work.onProgress((progress) => this.#heard(progress)));
    this.#ends.add(queue.work.onLost(() => this.#onLost()));
    await this.#recallAll("start");
    this.#loops.push(this.#release(), this.#sweep());
  }

  /** What keeps it from going on; undefined: nothing. */
  get trouble(): string | undefined {
    for (const why of this.#troubles.values()) return why;
    for (const { unreadable, wantsWork } of this.#jobs.values()) if (wantsWork && unreadable) return unreadable;
    return undefined;
  }

  async close(): Promise<void> {
    this.#stop.abort(new ServingError("DRAINING", "the jobs service stops"));
    for (const end of this.#ends) end();
    this.#wake.resolve();
    await Promise.all(this.#loops);
  }

  async accept(record: JobRecord): Promise<void> {
    this.#checkOpen();
    // A job that nothing can be told of is not taken on.
    const why = this.#troubles.get(READING) ?? this.#troubles.get(QUEUE);
    if (why !== undefined) throw new ServingError("STORAGE_UNAVAILABLE", why);
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
      if (job.record.wish === "pause" && !job.recalling) return undefined;
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
      // As it is before: it may come to its end meanwhile, and that is told by nobody but who made it ready.
      const status = statusNumber(job);
      await this.#recall(job, { priority }, { stop: false });
      return { status };
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
    const message = `job ${id} is being deleted; what it made goes once the storage answers`;
    const job = await this.#inTurn(() => this.#markDeleted(id));
    await this.#withinCommand(this.#removeAll(job), () => message);
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
          this.#relieved(READING);
          this.#applyAll(batch);
          if (this.#sequence >= until) caughtUp();
        }
      } catch (error) {
        if (!this.#stop.signal.aborted) await this.#troubled(READING, error);
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
    const endedBeforeAtMs = job.ledger.endedAtMs;
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
        const deadLetter = result?.case === "failed" && result.value.deadLetter;
        const model = result?.case === "done" ? result.value.receipt?.parameters?.model : undefined;
        const { pricePerDeviceHour, currency } = job.record;
        const cost = (deviceMs / 3_600_000) * pricePerDeviceHour;
        this.onOutcome({
          state,
          attempts,
          deadLetter,
          made: model === undefined ? undefined : { model, deviceMs, cost, currency },
        });
        this.#tell({ type: "item", job: this.#view(job), itemIndex: ended, state, sequence });
      }
    }
    if (event.event.case !== "change" || !this.#live) return;
    for (const waiter of this.#waiters) waiter(event);
    const { status } = event.event.value;
    const isEnd = status === JobStatus.DONE || status === JobStatus.CANCELLED;
    // An end that was written twice, or that a retry came before, is none.
    if (isEnd && (endedBeforeAtMs !== undefined || job.ledger.endedAtMs === undefined)) return;
    this.#tell({ type: isEnd ? "ended" : "changed", job: this.#view(job) });
  }

  #endIfAllEnded(job: KeptJob): void {
    if (job.ending || !isToEnd(job)) return;
    job.ending = true;
    void this.#end(job).finally(() => {
      job.ending = false;
    });
  }

  async #end(job: KeptJob): Promise<void> {
    this.#shares[job.record.priority].forget({ jobId: job.record.id, tenant: job.record.tenant });
    job.feed = undefined;
    const what = `ending job ${job.record.id}`;
    // Until the end has come back from the log: a retry may come between, and then there is another end.
    while (!this.#stop.signal.aborted && isToEnd(job)) {
      try {
        const { retries } = job.ledger;
        await this.#options.beforeEnd(job.record.id);
        // By turns with commands: what was made ready is of this end, and of none after a retry.
        await this.#turn.take(async () => {
          if (!isToEnd(job) || job.ledger.retries !== retries) return;
          await this.#appendAndWait(job, { status: JobStatus.DONE }, `done.${retries}`);
        });
      } catch (error) {
        await this.#troubled(what, error);
      }
    }
    this.#relieved(what);
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
        const more = await this.#turn.take(() => this.#handOut());
        this.#relieved(HANDING_OUT);
        if (more) continue;
      } catch (error) {
        await this.#troubled(HANDING_OUT, error);
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
    let readable = true;
    for (const priority of JOB_PRIORITIES) readable = (await this.#choose(priority, batch)) && readable;
    if (batch.length > 0) await this.#publish(batch);
    return batch.length === PUBLISH_ITEMS_MAX || !readable;
  }

  /** False where a job's items could not be read: it is left out for a while, and everybody else's are handed out. */
  async #choose(priority: JobPriority, batch: { job: KeptJob; work: WorkItem }[]): Promise<boolean> {
    let readable = true;
    const nowMs = this.#options.clock.nowMs();
    const share = this.#shares[priority];
    let claimants = [...this.#jobs.values()]
      .filter((job) => job.record.priority === priority && job.wantsWork && job.quietUntilMs <= nowMs)
      .filter(({ record }) => !this.#held.has(record.tenant))
      .map((job) => ({ job, jobId: job.record.id, tenant: job.record.tenant, weight: job.record.weight }));
    while (batch.length < PUBLISH_ITEMS_MAX) {
      const claimant = share.next(claimants);
      if (claimant === undefined) break;
      const { job } = claimant;
      const index = job.ledger.nextWaiting();
      // After one failure nothing more is read in this turn: where the store is away, each try may take its whole deadline.
      const item = index === undefined ? undefined : readable ? await this.#read(job, index) : job.feed?.peek(index);
      if (readable && index !== undefined && item === undefined) readable = false;
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
    return readable;
  }

  /** Undefined where it cannot be read now. */
  async #read(job: KeptJob, index: number): Promise<ItemSpec | undefined> {
    job.feed ??= new ItemFeed(this.#options.items, job.record.id);
    const { clock, log } = this.#options;
    try {
      const item = job.feed.peek(index) ?? (await job.feed.read(index));
      if (job.unreadable !== undefined) log.info({ jobId: job.record.id }, "items of a job can be read again");
      job.unreadable = undefined;
      return item;
    } catch (error) {
      const { detail } = toServingError(error);
      if (job.unreadable !== detail) log.error({ err: error, jobId: job.record.id }, "items of a job cannot be read");
      job.unreadable = detail;
      job.quietUntilMs = clock.nowMs() + RETRY_MS;
      clock.after(RETRY_MS, () => this.#wake.resolve());
      return undefined;
    }
  }

  async #publish(batch: readonly { readonly job: KeptJob; readonly work: WorkItem }[]): Promise<void> {
    const published = this.#options.publishing?.(batch);
    try {
      await this.#options.queue.work.publish(batch.map(({ work }) => work));
      published?.();
    } catch (error) {
      published?.(error);
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

  #onLost(): void {
    this.#options.log.warn("the work queue was deleted and is there again, empty: handing out again what it held");
    void this.#recallAll("the work queue was made anew");
  }

  async #recallAll(why: string, which: (job: KeptJob) => boolean = () => true): Promise<void> {
    for (const job of [...this.#jobs.values()].filter(which)) {
      if (job.record.deleting) {
        void this.#removeAll(job);
        continue;
      }
      if (job.ledger.ended || job.record.wish === "cancel") {
        this.#endIfAllEnded(job);
        continue;
      }
      await this.#persistently(`recalling job ${job.record.id} (${why})`, () =>
        this.#turn.take(() => this.#recall(job, {}, { stop: false })),
      );
    }
    this.#wake.resolve();
  }

  /** Takes back what is handed out: a newer round first, so that nothing that is out can be taken for what comes. */
  async #recall(job: KeptJob, change: Partial<JobRecord>, options: { readonly stop: boolean }): Promise<void> {
    const { clock, queue } = this.#options;
    await this.#save(job, { ...change, round: job.ledger.newerRound(job.record.round) });
    job.recalling = true;
    await queue.work.withdraw(job.record.id, options);
    const nowMs = clock.nowMs();
    for (const index of [...job.ledger.outItems()]) {
      const heardAtMs = job.ledger.progress(index)?.heardAtMs ?? Number.NEGATIVE_INFINITY;
      if (heardAtMs < nowMs - this.#options.leaseMs || options.stop) this.#putBack(job, index);
      else job.stragglers.add(index);
    }
    job.recalling = false;
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
        if (record.deleting) {
          // Its command was given up before its mark was stored.
          void this.#removeAll(job);
          continue;
        }
        this.#endIfAllEnded(job);
        if (job.recalling || (record.wish === "cancel" && ledger.endedAtMs === undefined)) await this.#finish(job);
        const ended = (status === "done" || status === "cancelled") && ledger.endedAtMs !== undefined;
        if (ended && nowMs > ledger.endedAtMs! + (record.deleteAfterMs ?? keptMs)) await this.#removeOld(job);
      }
      await this.#look();
      this.#wake.resolve();
    }
  }

  /** Whether the queue has all its parts, and the items that it should. */
  async #look(): Promise<void> {
    try {
      await this.#options.queue.check();
      await this.#findLost();
      this.#relieved(QUEUE);
    } catch (error) {
      await this.#troubled(QUEUE, error);
    }
  }

  /** A pause, a cancellation or another recall that the queue's absence or a crash cut short. */
  async #finish(job: KeptJob): Promise<void> {
    const what = `taking back items of job ${job.record.id}`;
    const isCancelled = () => job.record.wish === "cancel" && job.ledger.endedAtMs === undefined;
    const finish = async () => {
      if (job.record.deleting || !(job.recalling || isCancelled())) return;
      await this.#recall(job, {}, { stop: job.record.wish === "cancel" });
      if (isCancelled()) await this.#appendAndWait(job, { status: JobStatus.CANCELLED });
    };
    await this.#turn.take(finish).then(
      () => this.#relieved(what),
      (error: unknown) => this.#troubled(what, error),
    );
  }

  async #removeOld(job: KeptJob): Promise<void> {
    const what = `deleting job ${job.record.id}`;
    try {
      void this.#removeAll(await this.#turn.take(() => this.#markDeleted(job.record.id)));
      this.#relieved(what);
    } catch (error) {
      if (error instanceof ServingError && error.code === "NOT_FOUND") return this.#relieved(what); // its owner was faster
      await this.#troubled(what, error);
    }
  }

  /**
   * Items of a class and model that are out by our count while the queue has none of them, several times in a row and
   * without any that ended meanwhile: somebody took them out by hand.
   */
  async #findLost(): Promise<void> {
    const { work, events } = this.#options.queue;
    const depths = await work.depths();
    const queued = new Set<string>();
    for (const { priorityClass, model, waiting, held } of depths) {
      const priority = JOB_PRIORITIES.find((name) => PRIORITY_CLASS[name] === priorityClass);
      if (priority !== undefined && waiting + held > 0) queued.add(laneOf(priority, model));
    }
    const lost = this.#lanes.lost(queued);
    // Or they have ended, and this process has not read that yet.
    if (lost.length === 0 || (await events.lastSequence()) > this.#sequence) return;
    this.#options.log.warn({ lanes: lost }, "items that were handed out are not in the queue any more: out again");
    const isHit = (job: KeptJob) => [...job.outLanes.values()].some((lane) => lost.includes(lane));
    await this.#recallAll("items are missing from the queue", isHit);
  }

  /** From then on it is as good as gone, and a restart goes on with it. */
  async #markDeleted(id: string): Promise<KeptJob> {
    const job = this.#job(id);
    const wish = job.status === "done" ? job.record.wish : "cancel";
    await this.#save(job, { wish, deleting: true });
    return job;
  }

  #removeAll(job: KeptJob): Promise<void> {
    job.removal ??= this.#carryOutRemoval(job);
    return job.removal;
  }

  async #carryOutRemoval(job: KeptJob): Promise<void> {
    const { queue, clock, log, removeObjects, leaseMs } = this.#options;
    const { id } = job.record;
    await this.#persistently(`deleting job ${id}`, async () => {
      await queue.work.withdraw(id, { stop: true });
      await removeObjects(id);
      await queue.work.removeDeadLetters(id);
      await queue.events.remove(id);
      await queue.records.remove(RECORD_PREFIX + id);
    });
    if (this.#stop.signal.aborted) return;
    for (const index of [...job.ledger.outItems()]) this.#putBack(job, index);
    const view = this.#view(job);
    this.#jobs.delete(id);
    for (const share of Object.values(this.#shares)) share.forget({ jobId: id, tenant: job.record.tenant });
    this.#tell({ type: "removed", job: view });
    // A worker that could not be told may have written one more, and said so.
    const removeLate = async () => {
      this.#ends.delete(cancel);
      await removeObjects(id);
      await queue.events.remove(id);
    };
    const cancel = clock.after(leaseMs, () => {
      removeLate().catch((err: unknown) => log.warn({ err, jobId: id }, "something of a deleted job may be left"));
    });
    this.#ends.add(cancel);
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
    const job = await this.#inTurn(async () => {
      const found = this.#job(id);
      if (!allowed.includes(found.status)) {
        throw new ServingError("CONFLICT", `job ${id} is ${found.status}, and cannot be ${participle}`);
      }
      const change = await carryOut(found);
      if (change !== undefined) await this.#appendAndWait(found, change);
      return found;
    });
    this.#wake.resolve();
    return this.#view(job);
  }

  /** A command's turn. One that does not come within a command's time is given up, and nothing was done then. */
  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    let state: "waits" | "begun" | "given up" = "waits";
    const result = this.#turn.take(async () => {
      if (state === "given up") throw new ServingError("STORAGE_UNAVAILABLE", "nobody waits for it any more");
      state = "begun";
      return await run();
    });
    return this.#withinCommand(result, () => {
      if (state === "begun") return "the queue is slow: the change was begun, and may still come into effect";
      state = "given up";
      return `the queue is slow: nothing was changed (${this.trouble ?? "others wait for it as well"})`;
    });
  }

  async #withinCommand<T>(result: Promise<T>, message: () => string): Promise<T> {
    const late = Promise.withResolvers<never>();
    const cancel = this.#options.clock.after(COMMAND_MS, () =>
      late.reject(new ServingError("STORAGE_UNAVAILABLE", message())),
    );
    try {
      return await Promise.race([result, late.promise]);
    } finally {
      cancel();
    }
  }

  /** Resolves when the event, or another one of this job that says the same, has come back from the log. */
  async #appendAndWait(job: KeptJob, change: Change, id = newId("change")): Promise<void> {
    const seen = Promise.withResolvers<void>();
    const waiter = ({ jobId, event }: JobEvent) => {
      if (jobId === job.record.id && event.case === "change" && event.value.status === change.status) seen.resolve();
    };
    this.#waiters.add(waiter);
    try {
      await this.#options.queue.events.append(this.#changeOf(job, change), `${job.record.id}.${id}`);
      await this.#withinCommand(seen.promise, () => "the event log took the change and has not shown it yet");
    } finally {
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
    const key = RECORD_PREFIX + record.id;
    const value = JSON.stringify(record);
    // Until somebody says so, this one may be stored or not.
    job.unsure.add(sha256(value));
    try {
      job.revision = await records.put(key, value, job.revision);
    } catch (error) {
      if (!(error instanceof ServingError) || error.code !== "CONFLICT") throw error;
      // One of ours, whose answer was lost; or that of an instance that took over, as this one is about to hear.
      const kept = await records.get(key);
      if (kept === undefined || !job.unsure.has(sha256(kept.value))) {
        throw new ServingError(
          "STORAGE_UNAVAILABLE",
          `job ${record.id} was changed by another instance of the service`,
        );
      }
      job.revision = await records.put(key, value, kept.revision);
    }
    job.unsure.clear();
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
        return this.#relieved(what);
      } catch (error) {
        await this.#troubled(what, error);
      }
    }
  }

  /** Says so once, and waits a while. A bug is not waited for. */
  async #troubled(what: string, thrown: unknown): Promise<void> {
    const error = toServingError(thrown);
    if (error.code === "INTERNAL") this.#options.log.error({ err: thrown }, `${what} failed`);
    else if (this.#troubles.get(what) !== error.detail) {
      this.#options.log.warn({ reason: error.detail }, `${what} waits`);
    }
    this.#troubles.set(what, error.detail);
    await delay(this.#options.clock, RETRY_MS, this.#stop.signal);
  }

  #relieved(what: string): void {
    if (this.#troubles.delete(what)) this.#options.log.info(`${what} goes on`);
  }
}

/** All items have ended, and the log does not say yet that the job has. */
function isToEnd({ ledger, record }: KeptJob): boolean {
  return ledger.ended && ledger.endedAtMs === undefined && record.wish !== "cancel" && !record.deleting;
}

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
