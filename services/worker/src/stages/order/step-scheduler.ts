import { invariant } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { StepTimes } from "../../step-times.ts";
import { BatchCaps } from "./batch-caps.ts";
import { batchSize } from "./batch-size.ts";
import { FairShare } from "./fair-share.ts";
import { narrowRoundMs, type StepDemand, wideRoundMs } from "./lane-choice.ts";
import { PRIORITY_CLASSES, type PriorityClass, type ServiceOrder, urgencyRank } from "./service-order.ts";

/** What the scheduler needs to know of a job. All but `order` may change when a step was made. */
export interface ScheduledJob {
  readonly order: ServiceOrder;
  readonly model: string;
  readonly shape: LatentShape;
  readonly sequenceLength: number;
  /** Names and lengths of its rows' extra inputs; "" where it has none. */
  readonly extraInputs: string;
  /** Rows of its next step: two with guidance, one without. */
  readonly rowCount: number;
  /** What is left to do; the first pass is the one that it is in. */
  readonly passesLeft: readonly { readonly shape: LatentShape; readonly steps: number }[];
}

/** A device as the scheduler sees it: one wide lane, or `narrow` lanes beside one another, never both at once. */
export interface LaneCounts {
  /** CPU threads of each kind of lane; 0 on a device that has one lane. */
  readonly wideThreads: number;
  readonly narrowThreads: number;
  readonly narrow: number;
  /** How many narrow lanes there would be if they were opened. */
  readonly narrowMax: number;
}

export interface SchedulerOptions {
  readonly lanesOf: (model: string) => LaneCounts;
  readonly times: StepTimes;
  /** Jobs in one run. */
  readonly stepBatchMax: number;
  /** A class that could run and did not for so long gets the next step batch. */
  readonly ageingMs: number;
  /** Rows of one run that the device has room for; all of them where it does not say. */
  readonly rowsMax?: (model: string, shape: LatentShape) => number;
}

/** "wide", or the number of a narrow lane. */
export type LaneSlot = "wide" | number;

/** A step batch that is to run now. */
export interface StepBatch<Job> {
  readonly slot: LaneSlot;
  readonly model: string;
  readonly shape: LatentShape;
  readonly sequenceLength: number;
  /** The leader first. */
  readonly jobs: readonly Job[];
  readonly rowCount: number;
  /** Rows that it could have had, of jobs like its own: as many jobs as a batch may have, and the memory holds. */
  readonly rowsMax: number;
  readonly threads: number;
  /** Lanes that run beside one another as this one does, itself included. */
  readonly lanes: number;
  /** The leader's. */
  readonly priorityClass: PriorityClass;
  readonly startedAtMs: number;
  /** Predicted; 0 where nothing is known. */
  readonly predictedMs: number;
}

interface Entry<Job> {
  readonly job: Job;
  readonly rank: number;
  readonly arrival: number;
  /** Jobs of one kind can share a batch. */
  kind: string;
  /** Predicted device milliseconds until it is done, alone. */
  leftMs: number;
  stepsLeft: number;
  lastStepAtMs: number;
  started: boolean;
  running: boolean;
  /** It had started, and more urgent work runs in its place. */
  paused: boolean;
}

/** An aged class may take at most about 1/AGED_SHARE of the device: with slow steps it waits longer than `ageingMs`. */
const AGED_SHARE = 10;

/**
 * A job that made no step for this many times the work that it has left goes before shorter ones, for one step. Taking
 * the time waited off the work left at every comparison would have equal jobs take turns, and all of them finish last.
 */
const PATIENCE = 4;
const PATIENCE_MS_MIN = 2000;
/** The table goes on learning while jobs wait. */
const DESCRIBE_EVERY_MS = 1000;

/**
 * Decides whose step is next, with whom, and on which lane. Does no I/O, and time is an argument.
 *
 * Order: 1. the most urgent class, strictly, but for a class that has aged; 2. within it tenants by deficit round robin
 * (`FairShare`); 3. within a tenant the earliest wish to be finished, then whoever ran out of patience, then the least work
 * left, then arrival: short jobs pass long ones, and none waits for ever.
 *
 * The first in that order leads the batch; those after it that fit join while batching pays (`batchSize`). The lane:
 * `wide` while it takes every job of the most urgent class through a step sooner than the narrow lanes do. While those
 * run wide the others wait, which is all there is to preemption: a job that is not picked is paused.
 */
export class StepScheduler<Job extends ScheduledJob> {
  readonly #options: SchedulerOptions;
  readonly #entries = new Map<Job, Entry<Job>>();
  readonly #running = new Map<LaneSlot, StepBatch<Job>>();
  readonly #shares = PRIORITY_CLASSES.map(() => new FairShare());
  /** When each class last had a turn, or got its first job after it had none. */
  readonly #turnAtMs = PRIORITY_CLASSES.map(() => 0);
  readonly #caps = new BatchCaps();
  readonly #narrowWanted = new Set<string>();
  #arrivals = 0;
  #describedAtMs = 0;

  constructor(options: SchedulerOptions) {
    this.#options = options;
  }

  add(job: Job, nowMs: number): void {
    invariant(!this.#entries.has(job), "a job is scheduled once");
    const rank = urgencyRank(job.order.priorityClass);
    if (!this.#has(rank)) this.#turnAtMs[rank] = nowMs;
    const entry: Entry<Job> = {
      job,
      rank,
      arrival: this.#arrivals++,
      kind: "",
      leftMs: 0,
      stepsLeft: 0,
      lastStepAtMs: nowMs,
      started: false,
      running: false,
      paused: false,
    };
    this.#describe(entry);
    this.#entries.set(job, entry);
  }

  /** The job is done, or will not go on. It is in no running batch. */
  remove(job: Job): void {
    const entry = this.#entries.get(job);
    invariant(entry !== undefined && !entry.running, "a job that leaves is scheduled and not in a running batch");
    this.#entries.delete(job);
    if (!this.#has(entry.rank)) this.#shares[entry.rank]!.clear();
  }

  /** A model is about to be unloaded; no job of it is here. */
  forget(model: string): void {
    this.#narrowWanted.delete(model);
  }

  /** Jobs that are in no running batch. */
  *idle(): Iterable<Job> {
    for (const { job, running } of this.#entries.values()) if (!running) yield job;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** Models whose work would go faster on narrow lanes that are not open yet. */
  get narrowWanted(): ReadonlySet<string> {
    return this.#narrowWanted;
  }

  /**
   * The batch to start now, on a free lane; undefined while there is none, or the work had better wait for a lane.
   * `finishesMax` is how many jobs may make their last step: more latents than that nobody could take.
   */
  next(nowMs: number, finishesMax: number): StepBatch<Job> | undefined {
    if (this.#running.has("wide")) return undefined;
    if (nowMs - this.#describedAtMs > DESCRIBE_EVERY_MS) {
      this.#describedAtMs = nowMs;
      for (const entry of this.#entries.values()) if (!entry.running) this.#describe(entry);
    }
    const ready = this.#ready(finishesMax);
    if (ready.length === 0) return undefined;
    const aged = this.#agedRank(ready, nowMs);
    const rank = aged ?? Math.min(...ready.map((entry) => entry.rank));
    const leader = this.#firstOf(rank, ready, nowMs);
    const slot = this.#slotFor(leader, ready, nowMs);
    if (slot === undefined) return undefined;
    return this.#start({ leader, slot, ready, finishesMax, aged: aged !== undefined }, nowMs);
  }

  /**
   * A batch is over, its jobs advanced or not: they can be picked again. `fitted` is false when the device had no
   * memory for it, which is remembered.
   */
  ended(batch: StepBatch<Job>, nowMs: number, { fitted }: { fitted: boolean }): void {
    invariant(this.#running.get(batch.slot) === batch, "only a running batch ends");
    this.#running.delete(batch.slot);
    const tookMs = nowMs - batch.startedAtMs;
    for (const job of batch.jobs) {
      const entry = this.#entries.get(job)!;
      entry.running = false;
      this.#charge(entry, batch, tookMs - batch.predictedMs);
      if (fitted) {
        entry.started = true;
        entry.lastStepAtMs = nowMs;
        this.#describe(entry);
      }
    }
    if (!fitted) this.#caps.refused(capKind(batch.model, batch.shape, batch.slot), batch.rowCount, nowMs);
  }

  /**
   * Jobs that had started, and have to give way to the more urgent work that runs now. Each is named once for every
   * time that it is kept from going on. To be called when `next` has nothing more to start.
   */
  preempted(finishesMax: number): readonly Job[] {
    if (this.#running.size === 0) return [];
    const ranks = [...this.#running.values()].map(({ priorityClass }) => urgencyRank(priorityClass));
    const mostUrgent = Math.min(...ranks);
    const preempted = this.#ready(finishesMax).filter(
      (entry) => entry.started && !entry.paused && entry.rank > mostUrgent,
    );
    for (const entry of preempted) entry.paused = true;
    return preempted.map(({ job }) => job);
  }

  #has(rank: number): boolean {
    for (const entry of this.#entries.values()) if (entry.rank === rank) return true;
    return false;
  }

  /** What of a job changes with its steps. */
  #describe(entry: Entry<Job>): void {
    const { model, shape, sequenceLength, extraInputs, rowCount, passesLeft } = entry.job;
    entry.kind = `${model} ${shape.channels}x${shape.height}x${shape.width} ${sequenceLength} ${extraInputs}`;
    const { narrow, narrowThreads, wideThreads } = this.#options.lanesOf(model);
    const threads = narrow > 0 ? narrowThreads : wideThreads;
    entry.leftMs = 0;
    entry.stepsLeft = 0;
    for (const { shape: of, steps } of passesLeft) {
      entry.leftMs += steps * this.#options.times.runMs(model, of, threads, rowCount);
      entry.stepsLeft += steps;
    }
  }

  /** Jobs that could make a step now. */
  #ready(finishesMax: number): Entry<Job>[] {
    const mayFinish = finishesMax > this.#finishing;
    return [...this.#entries.values()].filter(({ running, stepsLeft }) => !running && (mayFinish || stepsLeft > 1));
  }

  /** Jobs in running batches that make their last step there. */
  get #finishing(): number {
    let finishing = 0;
    for (const { jobs } of this.#running.values())
      for (const job of jobs) if (this.#entries.get(job)!.stepsLeft === 1) finishing += 1;
    return finishing;
  }

  /**
   * The class that has waited too long for a turn, if there is one less urgent than others that could run. It then gets
   * a single step batch: work of that class goes on, slowly, under any load, and the more urgent hardly notices.
   */
  #agedRank(ready: readonly Entry<Job>[], nowMs: number): number | undefined {
    const ranks = [...new Set(ready.map((entry) => entry.rank))].toSorted((a, b) => a - b);
    const runningRanks = new Set([...this.#running.values()].map(({ priorityClass }) => urgencyRank(priorityClass)));
    return ranks.slice(1).find((rank) => {
      if (runningRanks.has(rank)) return false;
      const stepMs = Math.min(...ready.filter((entry) => entry.rank === rank).map(stepMsOf));
      return nowMs - this.#turnAtMs[rank]! >= Math.max(this.#options.ageingMs, AGED_SHARE * stepMs);
    });
  }

  #firstOf(rank: number, ready: readonly Entry<Job>[], nowMs: number): Entry<Job> {
    const ofClass = ready.filter((entry) => entry.rank === rank);
    const tenants = new Set(ofClass.map(({ job }) => job.order.tenant));
    const active = (tenant: string) => this.#hasWork(rank, tenant);
    const tenant = this.#shares[rank]!.next(tenants, active);
    const own = ofClass.filter(({ job }) => job.order.tenant === tenant);
    return own.reduce((first, entry) => (compareWithinTenant(entry, first, nowMs) < 0 ? entry : first));
  }

  #hasWork(rank: number, tenant: string): boolean {
    for (const entry of this.#entries.values())
      if (entry.rank === rank && entry.job.order.tenant === tenant) return true;
    return false;
  }

  /** The lane for the leader's batch; undefined where it has to wait for one. */
  #slotFor(leader: Entry<Job>, ready: readonly Entry<Job>[], nowMs: number): LaneSlot | undefined {
    if (this.#wideIsBetter(leader, ready, nowMs)) return this.#running.size === 0 ? "wide" : undefined;
    const { narrow } = this.#options.lanesOf(leader.job.model);
    for (let slot = 0; slot < narrow; slot++) if (!this.#running.has(slot)) return slot;
    return undefined;
  }

  /** Whether the most urgent class as a whole, running work included, goes faster through the wide lane. */
  #wideIsBetter(leader: Entry<Job>, ready: readonly Entry<Job>[], nowMs: number): boolean {
    const { narrow, narrowMax } = this.#options.lanesOf(leader.job.model);
    if (narrowMax === 0) return true;
    const active = [...ready, ...[...this.#entries.values()].filter(({ running }) => running)];
    const mostUrgent = Math.min(...active.map((entry) => entry.rank));
    const urgent = active.filter((entry) => entry.rank === mostUrgent);
    const demands = this.#demands(urgent);
    const wideMs = wideRoundMs(demands, this.#options.stepBatchMax);
    if (narrow < narrowMax && narrowRoundMs(demands, narrowMax) < wideMs) this.#narrowWanted.add(leader.job.model);
    else this.#narrowWanted.delete(leader.job.model);
    if (narrow === 0) return true;

    const gainMs = narrowRoundMs(demands, narrow) - wideMs;
    if (gainMs < 0) return false;
    // The narrow lanes have to run dry first, which only pays where enough steps are left.
    const ends = [...this.#running.values()].map(({ startedAtMs, predictedMs }) => startedAtMs + predictedMs);
    const drainMs = Math.max(0, ...ends.map((endMs) => endMs - nowMs));
    return gainMs * Math.min(...urgent.map((entry) => entry.stepsLeft)) >= drainMs;
  }

  #demands(entries: readonly Entry<Job>[]): StepDemand[] {
    const { times, lanesOf } = this.#options;
    return [...Map.groupBy(entries, (entry) => entry.kind).values()].map((alike) => {
      const { model, shape } = alike[0]!.job;
      const { wideThreads, narrowThreads } = lanesOf(model);
      return {
        rows: alike.map(({ job }) => job.rowCount),
        wideMs: (rows) => times.hopefulRunMs(model, shape, wideThreads, rows),
        narrowMs: (rows) => times.hopefulRunMs(model, shape, narrowThreads, rows),
      };
    });
  }

  #start(
    choice: { leader: Entry<Job>; slot: LaneSlot; ready: readonly Entry<Job>[]; finishesMax: number; aged: boolean },
    nowMs: number,
  ): StepBatch<Job> {
    const { leader, slot, ready, aged } = choice;
    const { model, shape, sequenceLength } = leader.job;
    const { wideThreads, narrowThreads, narrow } = this.#options.lanesOf(model);
    const threads = slot === "wide" ? wideThreads : narrowThreads;
    const lanes = slot === "wide" ? 1 : narrow;
    const runMs = (rows: number) => this.#options.times.runMs(model, shape, threads, rows);

    const finishesLeft = choice.finishesMax - this.#finishing;
    const { fitting, equals } = this.#inOrder(leader, ready, finishesLeft, nowMs);
    const free = slot === "wide" ? 1 : narrow - this.#running.size;
    const rowsMax = Math.min(
      this.#caps.rowsMax(capKind(model, shape, slot), nowMs),
      this.#options.rowsMax?.(model, shape) ?? Infinity,
    );
    const size = batchSize({
      rows: fitting.map(({ job }) => job.rowCount),
      equals: aged ? 1 : equals,
      runMs,
      narrow: slot !== "wide",
      // Spread over the free lanes before any of them is given a larger batch.
      jobsMax: Math.min(this.#options.stepBatchMax, Math.ceil(ready.length / Math.max(1, free))),
      rowsMax,
    });
    const picked = fitting.slice(0, size);
    const rowCount = picked.reduce((sum, { job }) => sum + job.rowCount, 0);
    const batch: StepBatch<Job> = {
      slot,
      model,
      shape,
      sequenceLength,
      jobs: picked.map(({ job }) => job),
      rowCount,
      rowsMax: Math.max(rowCount, Math.min(rowsMax, (this.#options.stepBatchMax * rowCount) / picked.length)),
      threads,
      lanes,
      priorityClass: PRIORITY_CLASSES[leader.rank]!,
      startedAtMs: nowMs,
      predictedMs: runMs(rowCount),
    };
    this.#running.set(slot, batch);
    for (const entry of picked) {
      entry.running = true;
      entry.paused = false;
      this.#turnAtMs[entry.rank] = nowMs;
      this.#charge(entry, batch, batch.predictedMs);
    }
    return batch;
  }

  /**
   * Those that could share the leader's batch, in the order of service; no more of them at their last step than may
   * finish. `equals` of them, from the front, are as urgent as the leader or more.
   */
  #inOrder(leader: Entry<Job>, ready: readonly Entry<Job>[], finishesMax: number, nowMs: number) {
    let finishesLeft = finishesMax - (leader.stepsLeft === 1 ? 1 : 0);
    const fitting = [leader];
    const alike = ready.filter((entry) => entry !== leader && entry.kind === leader.kind);
    // The leader's class comes first also where it has aged and others are more urgent.
    const ranks = [leader.rank, ...[...PRIORITY_CLASSES.keys()].filter((rank) => rank !== leader.rank)];
    let equals = 1;
    for (const rank of ranks) {
      for (const entry of this.#turnsOfTenants(rank, alike, leader, nowMs)) {
        if (entry.stepsLeft === 1 && finishesLeft-- <= 0) continue;
        fitting.push(entry);
        if (rank <= leader.rank) equals = fitting.length;
      }
    }
    return { fitting, equals };
  }

  /** The class's jobs, tenants taking turns: at each the one whose account, less what it was just given, is highest. */
  *#turnsOfTenants(rank: number, entries: readonly Entry<Job>[], leader: Entry<Job>, nowMs: number) {
    const ofClass = entries.filter((entry) => entry.rank === rank);
    const sorted = ofClass.toSorted((a, b) => compareWithinTenant(a, b, nowMs));
    const queues = Map.groupBy(sorted, ({ job }) => job.order.tenant);
    if (queues.size <= 1) return yield* sorted;
    const share = this.#shares[rank]!;
    const balances = new Map([...queues.keys()].map((tenant) => [tenant, share.balanceMs(tenant)]));
    const give = ({ job, stepsLeft, leftMs }: Entry<Job>) =>
      balances.set(job.order.tenant, (balances.get(job.order.tenant) ?? 0) - Math.max(leftMs / stepsLeft, 1e-6));
    if (leader.rank === rank) give(leader);
    for (let left = sorted.length; left > 0; left--) {
      const [richest] = [...queues].reduce((best, each) =>
        balances.get(each[0])! > balances.get(best[0])! ? each : best,
      );
      const queue = queues.get(richest)!;
      const entry = queue.shift()!;
      if (queue.length === 0) queues.delete(richest);
      give(entry);
      yield entry;
    }
  }

  /**
   * A job pays for its share of a run's rows, in milliseconds of the whole device, whoever led the batch; a tenant of
   * weight 2 half of it, so that it comes round twice as often.
   */
  #charge({ job, rank }: Entry<Job>, { rowCount, lanes, jobs }: StepBatch<Job>, runMs: number): void {
    const share = jobs.length === 1 ? 1 : job.rowCount / rowCount;
    const { tenant, weight = 1 } = job.order;
    this.#shares[rank]!.charge(tenant, (runMs * share) / lanes / weight);
  }
}

function compareWithinTenant(a: Entry<ScheduledJob>, b: Entry<ScheduledJob>, nowMs: number): number {
  const aFinish = a.job.order.finishAtMs ?? Infinity;
  const bFinish = b.job.order.finishAtMs ?? Infinity;
  if (aFinish !== bFinish) return aFinish - bFinish;
  const [aTooLong, bTooLong] = [waitedTooLong(a, nowMs), waitedTooLong(b, nowMs)];
  if (aTooLong !== bTooLong) return aTooLong ? -1 : 1;
  const first = aTooLong ? a.lastStepAtMs - b.lastStepAtMs : a.leftMs - b.leftMs;
  return first === 0 ? a.arrival - b.arrival : first;
}

function waitedTooLong({ leftMs, lastStepAtMs }: Entry<unknown>, nowMs: number): boolean {
  return nowMs - lastStepAtMs > Math.max(PATIENCE_MS_MIN, PATIENCE * leftMs);
}

/** Predicted milliseconds of its next step, alone; a mean where passes of two sizes are left. */
function stepMsOf({ leftMs, stepsLeft }: Entry<unknown>): number {
  return leftMs / stepsLeft;
}

function capKind(model: string, { height, width }: LatentShape, slot: LaneSlot): string {
  return `${model} ${height}x${width} ${slot === "wide" ? "wide" : "narrow"}`;
}
