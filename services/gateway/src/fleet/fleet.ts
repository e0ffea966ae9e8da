import { type Clock, invariant, type Random, type ServingError } from "@atelier/core";
import type { WorkerState } from "@atelier/proto";
import type { Logger } from "@atelier/telemetry";
import { NO_COSTS, StepCosts } from "./step-costs.ts";
import type { WorkerClient } from "./worker-client.ts";
import type { WorkerDirectory } from "./worker-directory.ts";
import { type BacklogReport, backlogOf, type JobsPlaced, type PlacedWork, WorkerLoad } from "./worker-load.ts";
import { type ModelView, modelsFromState, type WorkerView } from "./worker-view.ts";
import { WorkerWatch } from "./worker-watch.ts";

export interface FleetOptions {
  readonly directory: WorkerDirectory;
  readonly connect: (address: string) => WorkerClient;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
}

/**
 * The workers that this gateway knows, as their state streams last described them. Deciding who gets a request is not
 * its business; it only says what there is, and counts what was placed where.
 */
export class Fleet {
  readonly #options: FleetOptions;
  readonly #members = new Map<string, Member>();
  readonly #listeners = new Set<() => void>();
  #endDirectory: () => void = () => {};

  constructor(options: FleetOptions) {
    this.#options = options;
  }

  start(): void {
    this.#endDirectory = this.#options.directory.watch((addresses) => this.#follow(addresses));
  }

  /** The workers in the directory's order, as of now. */
  views(): readonly WorkerView[] {
    const nowMs = this.#options.clock.nowMs();
    return Array.from(this.#members.values(), (member) => viewOf(member, nowMs));
  }

  /** Calls `listener` after any change of any view but its in-flight count. The result ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Counts a request's work against the worker at `address`, until a report of the worker has it in or it is released. */
  place(address: string, work: JobsPlaced): WorkerSlot {
    const member = this.#members.get(address);
    invariant(member !== undefined, `${address} was picked from this fleet's views`);
    const placed = member.load.place(work);
    member.inFlight += 1;
    let released = false;
    return {
      client: member.client,
      accepted: placed.accepted,
      release: () => {
        if (released) return;
        released = true;
        placed.release();
        member.inFlight -= 1;
      },
    };
  }

  close(): void {
    this.#endDirectory();
    for (const address of [...this.#members.keys()]) this.#remove(address);
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

  #remove(address: string): void {
    const member = this.#members.get(address);
    member?.watch.stop();
    member?.client.close();
    this.#members.delete(address);
  }

  #heard(member: Member, state: WorkerState): void {
    const nowMs = this.#options.clock.nowMs();
    const wasReady = viewOf(member, nowMs).ready;
    const models = modelsFromState(state);
    // One that restarts speaks before it has loaded anything; its models are still on their way, not unknown.
    if (state.ready || models.size > 0) member.models = models;
    member.costs = new StepCosts(state, models.values());
    member.load.reported(reportOf(state), nowMs);
    member.state = state;
    member.lostReason = undefined;
    const view = viewOf(member, nowMs);
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

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }
}

export interface WorkerSlot extends PlacedWork {
  readonly client: WorkerClient;
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

const NOT_REACHED = "not reached yet";

function viewOf({ address, state, models, costs, load, lostReason, inFlight }: Member, nowMs: number): WorkerView {
  const jobsLeftMs = load.jobsLeftMs(nowMs);
  const notReadyReason = lostReason ?? (state?.draining ? "draining" : state?.ready ? undefined : "warming up");
  return {
    address,
    id: state?.workerId || address,
    simulated: state?.simulated ?? false,
    ready: state?.ready === true && notReadyReason === undefined,
    draining: state?.draining ?? false,
    notReadyReason,
    models,
    inFlight,
    jobsLeftMs,
    backlogMs: backlogOf(jobsLeftMs),
    shortestFirst: state !== undefined && tellsJobs(state),
    requestsFree: Math.max(0, (state?.requestsFree ?? 0) - load.uncounted),
    costs,
  };
}
