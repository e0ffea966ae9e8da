import { invariant, seededRandom } from "@atelier/core";
import type { SimulatedGpu } from "@atelier/worker";
import { DEFAULT_RULES, HorizontalScaler, type Reading } from "./horizontal-scaler.ts";
import { createPolicy, type Send } from "./policies.ts";
import { type SimState, SimWorker } from "./sim-worker.ts";
import { Simulation } from "./simulation.ts";
import { denoiseMs, drawTrace, type SimRequest } from "./trace.ts";

/** What a fleet is scaled by, with the value that it is to be kept at. */
export type Metric =
  /** Share of a worker's time in which it computes. That of its device: its CPU's would say less. */
  | { readonly by: "utilisation"; readonly target: number }
  /** Requests that are not answered, for each worker. */
  | { readonly by: "requests"; readonly target: number }
  /** Device seconds that are not done, and those that would come within the target's time, for each worker. */
  | { readonly by: "work"; readonly target: number };

export interface ScalingWorld {
  readonly gpu: SimulatedGpu;
  readonly workersMin: number;
  /** The quota. */
  readonly workersMax: number;
  /** From the decision until a new worker takes requests: scheduling, starting, loading a model that is on the node. */
  readonly startMs: number;
  /** Between two scrapes of Prometheus, and between two decisions of the autoscaler: 15 s each by default. */
  readonly scrapeMs: number;
  readonly syncMs: number;
  readonly seed: number;
}

export interface Scaled {
  readonly outcomes: readonly { readonly request: SimRequest; readonly latencyMs: number }[];
  /** Device milliseconds of workers that were there or on their way, and those in which they computed. */
  readonly paidMs: number;
  readonly busyMs: number;
  readonly peakWorkers: number;
  /** Workers at the end of each sync. */
  readonly sizes: readonly { readonly atMs: number; readonly ready: number; readonly starting: number }[];
}

export interface Rise {
  readonly seed: number;
  readonly gpu: SimulatedGpu;
  /** Requests a second before, and how many times as many at the peak. */
  readonly perSecond: number;
  readonly times: number;
  readonly riseAtMs: number;
  readonly riseMs: number;
  readonly fallAtMs: number;
  readonly endMs: number;
}

/** Requests whose rate rises within `riseMs`, stays, and falls as fast: a Poisson process, thinned. */
export function drawRise(rise: Rise): readonly SimRequest[] {
  const { seed, gpu, perSecond, times, riseAtMs, riseMs, fallAtMs, endMs } = rise;
  const peak = perSecond * times;
  const drawn = drawTrace({
    ...{ seed, gpu, gateways: 1, arrivals: "poisson", perSecond: peak },
    requests: Math.ceil(1.1 * peak * (endMs / 1000)),
  });
  const random = seededRandom(seed + 1_000_000);
  const rateAt = (ms: number) => {
    const up = clamp((ms - riseAtMs) / riseMs, 0, 1);
    const down = clamp((ms - fallAtMs) / riseMs, 0, 1);
    return perSecond * (1 + (times - 1) * (up - down));
  };
  return drawn
    .filter(({ atMs }) => random.next() < rateAt(atMs) / peak && atMs < endMs)
    .map((request, id) => ({ ...request, id }));
}

/** As production's default. */
const QUEUE_MAX = 64;
/** Over which arrivals are taken: what `rate(x[1m])` sees. Utilisation is that since the last scrape. */
const RATE_WINDOW_MS = 60_000;
const EVENTS_MAX = 100_000_000;

/** Serves `trace` with a fleet that an autoscaler keeps at `metric`'s target. The same for the same arguments. */
export async function runScaling(trace: readonly SimRequest[], metric: Metric, world: ScalingWorld): Promise<Scaled> {
  const fleet = new ScaledFleet(trace, metric, world);
  return fleet.run();
}

interface Sample {
  readonly atMs: number;
  readonly utilisation: readonly number[];
  readonly requests: number;
  readonly workMs: number;
}

class ScaledFleet {
  readonly #trace: readonly SimRequest[];
  readonly #metric: Metric;
  readonly #world: ScalingWorld;
  readonly #sim = new Simulation();
  readonly #scaler: HorizontalScaler;
  readonly #policy;
  /** Those that take requests. */
  readonly #ready: SimWorker[] = [];
  readonly #leaving = new Set<SimWorker>();
  /** Ways to call off those that are on their way. */
  readonly #starting: (() => void)[] = [];
  readonly #outcomes: { request: SimRequest; latencyMs: number }[] = [];
  readonly #sizes: { atMs: number; ready: number; starting: number }[] = [];
  readonly #samples: Sample[] = [];
  readonly #placed: { atMs: number; ms: number }[] = [];
  /** Arrived and not with a worker yet. */
  readonly #unplaced = new Map<number, number>();
  readonly #busyAt = new Map<SimWorker, number>();
  #names = 0;
  #goneBusyMs = 0;
  #paidMs = 0;
  #paidUntilMs = 0;
  #peak = 0;

  constructor(trace: readonly SimRequest[], metric: Metric, world: ScalingWorld) {
    this.#trace = trace;
    this.#metric = metric;
    this.#world = world;
    this.#scaler = new HorizontalScaler({ ...DEFAULT_RULES, min: world.workersMin, max: world.workersMax });
    this.#policy = createPolicy("ours", {
      ...{ sim: this.#sim, workers: this.#ready, random: seededRandom(world.seed), windowMs: Number.POSITIVE_INFINITY },
      send: this.#send,
    });
  }

  async run(): Promise<Scaled> {
    const { workersMin, scrapeMs, syncMs } = this.#world;
    for (let i = 0; i < workersMin; i++) this.#join();
    this.#arrive(0);
    this.#every(scrapeMs, () => this.#scrape());
    // Between two scrapes: what it reads is half a period old.
    this.#sim.after(scrapeMs / 2, () => this.#every(syncMs, () => this.#sync()));
    await this.#sim.run({ done: () => this.#outcomes.length === this.#trace.length, eventsMax: EVENTS_MAX });
    this.#pay();
    const busyMs = this.#goneBusyMs + sum([...this.#ready, ...this.#leaving].map((worker) => worker.busyMs));
    invariant(busyMs <= this.#paidMs, "nobody computes who is not paid for");
    return { outcomes: this.#outcomes, paidMs: this.#paidMs, busyMs, peakWorkers: this.#peak, sizes: this.#sizes };
  }

  #every(periodMs: number, run: () => void): void {
    this.#sim.after(periodMs, () => {
      run();
      this.#every(periodMs, run);
    });
  }

  #arrive(i: number): void {
    const request = this.#trace[i];
    if (request === undefined) return;
    this.#sim.after(request.atMs - this.#sim.nowMs(), () => {
      this.#unplaced.set(request.id, denoiseMs(request, this.#world.gpu));
      this.#policy.arrived(request);
      this.#arrive(i + 1);
    });
  }

  readonly #send: Send = (request, worker, { accepted, finished }) => {
    if (worker.draining) {
      // It says no, since the gateway had not heard yet, and the request is placed anew.
      finished?.();
      this.#policy.arrived(request);
      return;
    }
    this.#unplaced.delete(request.id);
    const report = worker.accept(request, () => {
      this.#outcomes.push({ request, latencyMs: this.#sim.nowMs() - request.atMs });
      finished?.();
    });
    accepted?.(report);
  };

  #join(): void {
    const { gpu } = this.#world;
    const worker = new SimWorker(this.#sim, {
      ...{ name: `w${this.#names++}`, gpu, discipline: "batches", residentMax: 4, queueMax: QUEUE_MAX },
    });
    this.#ready.push(worker);
    this.#busyAt.set(worker, 0);
    worker.publisher.watch((state: SimState) => this.#policy.heard?.(worker, state));
  }

  /** It takes nothing more and goes when it has finished. */
  #leave(worker: SimWorker): void {
    this.#ready.splice(this.#ready.indexOf(worker), 1);
    this.#leaving.add(worker);
    worker.drain();
  }

  #scrape(): void {
    const atMs = this.#sim.nowMs();
    const workers = [...this.#ready, ...this.#leaving];
    const utilisation = this.#ready.map((worker) => {
      const share = (worker.busyMs - this.#busyAt.get(worker)!) / this.#world.scrapeMs;
      this.#busyAt.set(worker, worker.busyMs);
      return Math.min(1, share);
    });
    this.#placed.push({ atMs, ms: this.#policy.placedMs ?? 0 });
    const before = this.#placed.findLast((each) => each.atMs <= atMs - RATE_WINDOW_MS) ?? this.#placed[0]!;
    const window = Math.max(this.#world.scrapeMs, atMs - before.atMs);
    const comingPerMs = (this.#placed.at(-1)!.ms - before.ms) / window;
    const waitingMs = sum([...this.#unplaced.values()]);
    this.#samples.push({
      atMs,
      utilisation,
      requests: this.#unplaced.size + sum(workers.map((worker) => worker.inFlight)),
      workMs: sum(workers.map((worker) => worker.backlogMs)) + waitingMs + comingPerMs * this.#metric.target * 1000,
    });
  }

  #sync(): void {
    this.#pay();
    for (const worker of this.#leaving) {
      if (worker.inFlight > 0) continue;
      this.#leaving.delete(worker);
      this.#goneBusyMs += worker.busyMs;
      this.#policy.left?.(worker);
    }
    const sample = this.#samples.at(-1);
    if (sample === undefined) return;
    const replicas = this.#ready.length + this.#starting.length;
    this.#resize(this.#scaler.decide(this.#read(sample), replicas, this.#sim.nowMs()) - replicas);
    this.#peak = Math.max(this.#peak, this.#ready.length + this.#starting.length);
    this.#sizes.push({ atMs: this.#sim.nowMs(), ready: this.#ready.length, starting: this.#starting.length });
  }

  #read({ utilisation, requests, workMs }: Sample): Reading {
    const { by, target } = this.#metric;
    switch (by) {
      case "utilisation":
        return { utilisation, target, starting: this.#starting.length };
      case "requests":
        return { total: requests, averageValue: target };
      case "work":
        return { total: workMs / 1000, averageValue: target };
    }
  }

  #resize(by: number): void {
    for (let i = 0; i < by; i++) {
      const cancel = this.#sim.after(this.#world.startMs, () => {
        this.#starting.splice(this.#starting.indexOf(cancel), 1);
        this.#pay();
        this.#join();
      });
      this.#starting.push(cancel);
    }
    for (let i = 0; i > by; i--) {
      // Those that are not ready go first, then the idlest: by the pods' deletion cost, under every metric.
      const cancel = this.#starting.pop();
      if (cancel !== undefined) cancel();
      else this.#leave(this.#ready.reduce((idlest, each) => (each.backlogMs < idlest.backlogMs ? each : idlest)));
    }
  }

  /** Until now, for all that are there: before their number changes, and at each sync. */
  #pay(): void {
    const nowMs = this.#sim.nowMs();
    const there = this.#ready.length + this.#starting.length + this.#leaving.size;
    this.#paidMs += there * (nowMs - this.#paidUntilMs);
    this.#paidUntilMs = nowMs;
  }
}

/**
 * Milliseconds from the rise until the 99th percentile of waiting, of the requests that arrived within `windowMs` before, is
 * under `targetMs` for good: the end of the last window that is not. A wait is what a request took beyond its own work.
 */
export function recoveryMs(
  outcomes: Scaled["outcomes"],
  { riseAtMs, fallAtMs }: Pick<Rise, "riseAtMs" | "fallAtMs">,
  { targetMs, windowMs }: { targetMs: number; windowMs: number },
): number {
  const stepMs = 5_000;
  const byArrival = outcomes.toSorted((a, b) => a.request.atMs - b.request.atMs);
  let lastBadMs = riseAtMs;
  for (let endMs = riseAtMs; endMs <= fallAtMs; endMs += stepMs) {
    const waits = byArrival
      .filter(({ request: { atMs } }) => atMs > endMs - windowMs && atMs <= endMs)
      .map(({ request, latencyMs }) => latencyMs - request.serviceMs)
      .sort((a, b) => a - b);
    const p99 = waits[Math.max(0, Math.ceil(0.99 * waits.length) - 1)] ?? 0;
    if (p99 > targetMs) lastBadMs = endMs;
  }
  return lastBadMs - riseAtMs;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function clamp(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, value));
}
