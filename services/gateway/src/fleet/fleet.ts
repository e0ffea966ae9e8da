import { type Clock, invariant, type Random, type ServingError } from "@atelier/core";
import type { WorkerState } from "@atelier/proto";
import type { Logger } from "@atelier/telemetry";
import { Outliers } from "./outliers.ts";
import { NO_COSTS, StepCosts } from "./step-costs.ts";
import type { WorkerClient } from "./worker-client.ts";
import type { WorkerDirectory } from "./worker-directory.ts";
import {
  type BacklogReport,
  backlogOf,
  type JobsLeftMs,
  type JobsPlaced,
  type PlacedWork,
  WorkerLoad,
} from "./worker-load.ts";
import { type ModelView, modelsFromState, type WorkerView } from "./worker-view.ts";
import { WorkerWatch } from "./worker-watch.ts";

export interface FleetOptions {
  readonly directory: WorkerDirectory;
  readonly connect: (address: string) => WorkerClient;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
}

export interface FleetObserver {
  /** A worker was left out for its failures. */
  ejected(address: string): void;
  /** A worker has left the directory. */
  removed(address: string): void;
}

/**
 * The workers that this gateway knows, as their state streams last described them. Deciding who gets a request is not
 * its business; it only says what there is, and counts what was placed where.
 */
export class Fleet {
  readonly #options: FleetOptions;
  readonly #members = new Map<string, Member>();
  readonly #listeners = new Set<() => void>();
  readonly #observers: FleetObserver[] = [];
  readonly #outliers: Outliers;
  #endDirectory: () => void = () => {};

  constructor(options: FleetOptions) {
    this.#options = options;
    const { clock, log } = options;
    this.#outliers = new Outliers({
      clock,
      fleetSize: () => this.#members.size,
      onEjected: (address, forMs, failures) => {
        log.warn({ worker: address, for_ms: forMs, failures }, "worker left out after failures in a row");
        for (const observer of this.#observers) observer.ejected(address);
        this.#changed();
      },
      onReturned: (address) => {
        log.info({ worker: address }, "worker taken in again");
        this.#changed();
      },
    });
  }

  start(): void {
    this.#endDirectory = this.#options.directory.watch((addresses) => this.#follow(addresses));
  }

  /** The workers in the directory's order, as of now. */
  views(): readonly WorkerView[] {
    const nowMs = this.#options.clock.nowMs();
    return Array.from(this.#members.values(), (member) => this.#view(member, nowMs));
  }

  /** For what is no generation; undefined where no such worker is known any more. */
  clientAt(address: string): WorkerClient | undefined {
    return this.#members.get(address)?.client;
  }

  /** Calls `listener` after any change of any view but its in-flight count. The result ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  observe(observer: FleetObserver): void {
    this.#observers.push(observer);
  }

  /** Counts a request's work against the worker at `address`, until a report of the worker has it in or it is released. */
  place(address: string, work: JobsPlaced): WorkerSlot {
    const member = this.#members.get(address);
    invariant(member !== undefined, `${address} was picked from this fleet's views`);
    const placed = member.load.place(work);
    member.inFlight += 1;
    let begun = false;
    let released = false;
    return {
      client: member.client,
      accepted: (report) => {
        begun = true;
        placed.accepted(report);
      },
      release: (failure) => {
        if (released) return;
        released = true;
        placed.release();
        member.inFlight -= 1;
        // One that was given back unused says nothing of the worker.
        if (this.#members.get(address) === member && (begun || failure !== undefined))
          this.#outliers.ended(address, failure);
        if (this.#members.get(address) !== member && member.inFlight === 0) member.client.close();
      },
    };
  }

  close(): void {
    this.#endDirectory();
    for (const address of [...this.#members.keys()]) this.#remove(address, { now: true });
  }

  #follow(addresses: readonly string[]): void {
    for (const address of this.#members.keys()) {
      if (!addresses.includes(address)) this.#remove(address);
    }
    for (const address of addresses) {
      if (!this.#members.has(address)) this.#add(address);
    }
    this.#changed();
  }

  #add(address: string): void {
    const { connect, clock, random, log } = this.#options;
    const client = connect(address);
    const watch = new WorkerWatch({
      open: (handlers) => client.watch(handlers),
      clock,
      random,
      onState: (state) => this.#heard(member, state),
      onLost: (reason) => this.#lost(member, reason),
    });
    const member: Member = {
      address,
      client,
      watch,
      state: undefined,
      models: new Map(),
      costs: NO_COSTS,
      load: new WorkerLoad(),
      lostReason: NOT_REACHED,
      inFlight: 0,
    };
    this.#members.set(address, member);
    log.debug({ worker: address }, "worker added");
    watch.start();
  }

  #remove(address: string, { now = false } = {}): void {
    const member = this.#members.get(address);
    if (member === undefined) return;
    this.#members.delete(address);
    this.#outliers.forget(address);
    member.watch.stop();
    // One that leaves its service's name is draining most often: what it still makes is waited for.
    if (member.inFlight === 0 || now) member.client.close();
    for (const observer of this.#observers) observer.removed(address);
  }

  #heard(member: Member, state: WorkerState): void {
    const nowMs = this.#options.clock.nowMs();
    const wasReady = this.#view(member, nowMs).ready;
    const models = modelsFromState(state);
    // One that restarts speaks before it has loaded anything; its models are still on their way, not unknown.
    if (state.ready || models.size > 0) member.models = models;
    member.costs = new StepCosts(state, models.values());
    member.load.reported(reportOf(state), nowMs);
    member.state = state;
    member.lostReason = undefined;
    const view = this.#view(member, nowMs);
    if (view.ready !== wasReady) {
      this.#options.log.info(
        { worker: view.id, address: view.address, reason: view.notReadyReason },
        view.ready ? "worker ready" : "worker not ready",
      );
    }
    this.#changed();
  }

  #lost(member: Member, reason: ServingError): void {
    // Said once when it happens; the attempts that follow are noise.
    const level = member.state === undefined ? "debug" : "warn";
    this.#options.log[level](
      { worker: member.state?.workerId ?? member.address, address: member.address, reason: reason.detail },
      "worker lost",
    );
    member.state = undefined;
    member.load.lost();
    member.lostReason = reason.detail;
    this.#changed();
  }

  #view(member: Member, nowMs: number): WorkerView {
    return viewOf(member, nowMs, this.#outliers.returnsAtMs(member.address));
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }
}

export interface WorkerSlot extends Pick<PlacedWork, "accepted"> {
  readonly client: WorkerClient;
  /** It is over there, well or not. More than once is once. */
  release(failure?: Error): void;
}

interface Member {
  readonly address: string;
  readonly client: WorkerClient;
  readonly watch: WorkerWatch;
  /** Undefined while the worker is not heard from. */
  state: WorkerState | undefined;
  models: ReadonlyMap<string, ModelView>;
  costs: StepCosts;
  readonly load: WorkerLoad;
  lostReason: string | undefined;
  inFlight: number;
}

function leftOutReason(returnsAtMs: number | undefined, nowMs: number): string | undefined {
  if (returnsAtMs === undefined) return undefined;
  return `left out for another ${Math.ceil((returnsAtMs - nowMs) / 1000)} s after failures in a row`;
}

function reportOf(state: WorkerState): BacklogReport {
  const { sequence, backlogInteractiveMs, backlogStandardMs, backlogBulkMs } = state;
  const { jobsLeftInteractiveMs, jobsLeftStandardMs, jobsLeftBulkMs } = state;
  return {
    sequence,
    backlogMs: { interactive: backlogInteractiveMs, standard: backlogStandardMs, bulk: backlogBulkMs },
    jobsLeftMs: tellsJobs(state)
      ? { interactive: jobsLeftInteractiveMs, standard: jobsLeftStandardMs, bulk: jobsLeftBulkMs }
      : undefined,
  };
}

/** One that has a backlog and names no jobs is older than those that do. */
function tellsJobs(state: WorkerState): boolean {
  const { jobsLeftInteractiveMs, jobsLeftStandardMs, jobsLeftBulkMs } = state;
  if (jobsLeftInteractiveMs.length + jobsLeftStandardMs.length + jobsLeftBulkMs.length > 0) return true;
  return state.backlogInteractiveMs + state.backlogStandardMs + state.backlogBulkMs === 0;
}

/** Of one that has not said. */
const DEFAULT_POOL = "default";
const NOT_REACHED = "not reached yet";

function viewOf(
  { address, state, models, costs, load, lostReason, inFlight }: Member,
  nowMs: number,
  returnsAtMs: number | undefined,
): WorkerView {
  // Most who look at a view do not look at its work.
  let jobsLeftMs: JobsLeftMs | undefined;
  const jobs = () => {
    jobsLeftMs ??= load.jobsLeftMs(nowMs);
    return jobsLeftMs;
  };
  const notReadyReason =
    lostReason ?? (state?.draining ? "draining" : !state?.ready ? "warming up" : leftOutReason(returnsAtMs, nowMs));
  return {
    address,
    id: state?.workerId || address,
    pool: state?.pool || DEFAULT_POOL,
    simulated: state?.simulated ?? false,
    heard: state !== undefined,
    ready: state?.ready === true && notReadyReason === undefined,
    draining: state?.draining ?? false,
    notReadyReason,
    models,
    inFlight,
    get jobsLeftMs() {
      return jobs();
    },
    get backlogMs() {
      return backlogOf(jobs());
    },
    shortestFirst: state !== undefined && tellsJobs(state),
    requestsFree: Math.max(0, (state?.requestsFree ?? 0) - load.uncounted),
    costs,
  };
}
