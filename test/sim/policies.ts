import type { Random } from "@atelier/core";
import {
  Balancer,
  backlogOf,
  FleetPlacer,
  type ImageRequest,
  type JobsPlaced,
  type ModelView,
  type PlacerFleet,
  WorkerLoad,
  type WorkerView,
} from "@atelier/gateway/placement";
import type { SimState, SimWorker } from "./sim-worker.ts";
import type { Simulation } from "./simulation.ts";
import { areaOf, MODELS, type SimModel, type SimRequest } from "./trace.ts";

/** Sends a request to a worker and says when it was taken and when its answer is back. */
export type Send = (
  request: SimRequest,
  worker: SimWorker,
  heard: { accepted?: (acceptance: { readonly sequence: bigint }) => void; finished?: () => void },
) => void;

/** One gateway's way to choose workers. */
export interface Policy {
  arrived(request: SimRequest): void;
  /** A worker's report reached the gateway: the first makes it known. */
  heard?(worker: SimWorker, state: SimState): void;
  /** A worker is gone. */
  left?(worker: SimWorker): void;
  /** Predicted milliseconds of device time that were placed, ever. */
  readonly placedMs?: number;
}

export interface PolicyWorld {
  readonly sim: Simulation;
  readonly workers: readonly SimWorker[];
  readonly send: Send;
  /** Each gateway's own. */
  readonly random: Random;
  readonly windowMs: number;
}

export const POLICIES = ["random", "round robin", "least requests", "declared cost", "ours"] as const;
export type PolicyName = (typeof POLICIES)[number];

export function createPolicy(name: PolicyName, world: PolicyWorld): Policy {
  switch (name) {
    case "random":
      return new ByScore(world, () => 0);
    case "round robin":
      return new RoundRobin(world);
    case "least requests":
      return new ByScore(world, () => 1);
    case "declared cost":
      // What a request says of itself, without a word on the device's speed.
      return new ByScore(world, (request) => areaOf(request) * request.steps * request.rows);
    case "ours":
      return new Ours(world);
  }
}

/** The workers that would have to load nothing, or else all. */
function holders({ workers }: PolicyWorld, states: ReadonlyMap<SimWorker, SimState>, { model }: SimRequest) {
  const taking = workers.filter((worker) => states.get(worker)?.draining !== true);
  const resident = taking.filter((worker) => states.get(worker)?.places.get(model.id)?.status === "resident");
  return resident.length > 0 ? resident : taking;
}

/** The least sum of scores of what this gateway has under way there; ties are drawn. */
class ByScore implements Policy {
  readonly #world: PolicyWorld;
  readonly #score: (request: SimRequest) => number;
  readonly #sums = new Map<SimWorker, number>();
  readonly #states = new Map<SimWorker, SimState>();

  constructor(world: PolicyWorld, score: (request: SimRequest) => number) {
    this.#world = world;
    this.#score = score;
  }

  heard(worker: SimWorker, state: SimState): void {
    this.#states.set(worker, state);
  }

  arrived(request: SimRequest): void {
    const { random, send } = this.#world;
    const among = holders(this.#world, this.#states, request);
    const sumOf = (worker: SimWorker) => this.#sums.get(worker) ?? 0;
    const least = Math.min(...among.map(sumOf));
    const tied = among.filter((worker) => sumOf(worker) <= least);
    const worker = tied[Math.floor(random.next() * tied.length)]!;
    const score = this.#score(request);
    this.#sums.set(worker, sumOf(worker) + score);
    send(request, worker, { finished: () => this.#sums.set(worker, sumOf(worker) - score) });
  }
}

class RoundRobin implements Policy {
  readonly #world: PolicyWorld;
  readonly #states = new Map<SimWorker, SimState>();
  #next: number;

  constructor(world: PolicyWorld) {
    this.#world = world;
    this.#next = Math.floor(world.random.next() * world.workers.length);
  }

  heard(worker: SimWorker, state: SimState): void {
    this.#states.set(worker, state);
  }

  arrived(request: SimRequest): void {
    const among = holders(this.#world, this.#states, request);
    this.#world.send(request, among[this.#next++ % among.length]!, {});
  }
}

/** The production placer and balancer over views that are made of the workers' reports. */
class Ours implements Policy, PlacerFleet {
  readonly #world: PolicyWorld;
  readonly #members = new Map<string, Member>();
  readonly #placer: FleetPlacer;
  readonly #listeners = new Set<() => void>();
  placedMs = 0;

  constructor(world: PolicyWorld) {
    this.#world = world;
    this.#placer = new FleetPlacer({
      fleet: this,
      balancer: new Balancer(world.random),
      clock: world.sim,
      limits: { windowMs: world.windowMs, waitingMax: Number.POSITIVE_INFINITY },
    });
  }

  heard(worker: SimWorker, state: SimState): void {
    const known = this.#members.get(worker.name);
    const member = known ?? { worker, load: new WorkerLoad(), state, models: NO_MODELS, inFlight: 0 };
    if (known === undefined) this.#members.set(worker.name, member);
    member.state = state;
    member.models = modelViews(state);
    member.load.reported(state, this.#world.sim.nowMs());
    for (const listener of this.#listeners) listener();
    this.#world.sim.stir();
  }

  left(worker: SimWorker): void {
    this.#members.delete(worker.name);
  }

  arrived(request: SimRequest): void {
    const { sim, send } = this.#world;
    const limits = { order: ORDER, deadline: FAR, signal: NEVER, avoid: NOBODY };
    void this.#placer.place(imageOf(request), limits).then((placement) => {
      const { worker } = this.#members.get(placement.worker.address)!;
      send(request, worker, { accepted: placement.accepted, finished: () => placement.release() });
    });
    sim.stir();
  }

  views(): readonly WorkerView[] {
    const nowMs = this.#world.sim.nowMs();
    return Array.from(this.#members.values(), ({ worker, load, state, models, inFlight }) => {
      const jobsLeftMs = load.jobsLeftMs(nowMs);
      return {
        address: worker.name,
        id: worker.name,
        pool: "default",
        simulated: true,
        heard: true,
        ready: !state.draining,
        draining: state.draining,
        notReadyReason: undefined,
        models,
        inFlight,
        jobsLeftMs,
        backlogMs: backlogOf(jobsLeftMs),
        shortestFirst: state.jobsLeftMs !== undefined,
        requestsFree: Math.max(0, state.requestsFree - load.uncounted),
        costs: state.costs,
      };
    });
  }

  place(address: string, work: JobsPlaced) {
    const member = this.#members.get(address)!;
    member.inFlight += 1;
    this.placedMs += work.jobs * work.msEach;
    const placed = member.load.place(work);
    const release = () => {
      member.inFlight -= 1;
      placed.release();
    };
    return { client: undefined as never, accepted: placed.accepted, release };
  }

  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

interface Member {
  readonly worker: SimWorker;
  readonly load: WorkerLoad;
  state: SimState;
  models: ReadonlyMap<string, ModelView>;
  inFlight: number;
}

const NO_MODELS: ReadonlyMap<string, ModelView> = new Map();
const ORDER = { priority: "standard", tenant: "" } as const;
const FAR = { atMs: Number.MAX_SAFE_INTEGER, leftMs: Number.MAX_SAFE_INTEGER, passed: false, check: () => {} } as never;
const NEVER = new AbortController().signal;
const NOBODY: ReadonlySet<string> = new Set();

function modelViews({ places }: SimState): ReadonlyMap<string, ModelView> {
  return new Map(
    MODELS.map((model) => {
      const place = places.get(model.id)!;
      return [model.id, { ...STATIC.get(model.id)!, place: { ...place, weightsBytes: 0, loadMs: model.loadMs } }];
    }),
  );
}

const STATIC = new Map(MODELS.map((model) => [model.id, staticView(model)]));

function staticView({ id, nativeSide }: SimModel): Omit<ModelView, "place"> {
  return {
    id,
    name: id,
    digest: "",
    family: "",
    license: "",
    limits: { sizeMin: 8, sizeMax: 4096, sizeMultiple: 8, pixelsMax: 2 ** 24, stepsMax: 150, numImagesMax: 4 },
    defaults: {
      nativeWidth: nativeSide,
      nativeHeight: nativeSide,
      width: nativeSide,
      height: nativeSide,
      steps: 25,
      guidanceScale: 7,
      sampler: "dpmpp_2m",
    },
    stepMs: 0,
    twoPasses: undefined,
  };
}

function imageOf({ id, model, width, height, steps, rows }: SimRequest): ImageRequest {
  return {
    id: String(id),
    model: model.id,
    prompt: "",
    negativePrompt: "",
    width,
    height,
    steps,
    guidanceScale: rows === 2 ? 7 : 1,
    sampler: "dpmpp_2m",
    seed: 0,
    numImages: 1,
    format: "png",
    quality: undefined,
    adapters: [],
  };
}

/**
 * One queue for all, in the order of arrival, and no delay anywhere: a worker takes the next request when it has fewer
 * than `inServiceMax` to denoise. What no fleet of several machines can do, for comparison.
 */
export class CentralQueue {
  readonly #workers: readonly SimWorker[];
  readonly #send: Send;
  readonly #inServiceMax: number;
  readonly #queue: SimRequest[] = [];

  constructor({ workers, send }: Pick<PolicyWorld, "workers" | "send">, inServiceMax: number) {
    this.#workers = workers;
    this.#send = send;
    this.#inServiceMax = inServiceMax;
  }

  arrived(request: SimRequest): void {
    this.#queue.push(request);
    this.pull();
  }

  pull(): void {
    while (this.#queue.length > 0) {
      const request = this.#queue[0]!;
      const free = this.#workers.filter((worker) => worker.denoising < this.#inServiceMax);
      if (free.length === 0) return;
      const holding = free.filter((worker) => worker.holds(request.model));
      const among = holding.length > 0 ? holding : free;
      const worker = among.reduce((best, each) => (each.backlogMs < best.backlogMs ? each : best));
      this.#queue.shift();
      this.#send(request, worker, {});
    }
  }
}
