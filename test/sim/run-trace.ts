import { invariant, seededRandom } from "@atelier/core";
import type { SimulatedGpu } from "@atelier/worker";
import { CentralQueue, createPolicy, type Policy, type PolicyName, type Send } from "./policies.ts";
import { type Discipline, type SimState, SimWorker } from "./sim-worker.ts";
import { Simulation } from "./simulation.ts";
import type { SimRequest } from "./trace.ts";

export interface World {
  readonly workers: number;
  readonly gateways: number;
  readonly discipline: Discipline;
  readonly gpu: SimulatedGpu;
  /** Of the models, how many a worker holds at once. */
  readonly residentMax: number;
  /** One way between a gateway and a worker. */
  readonly networkMs: number;
  /** By how much a worker's report comes later than that. */
  readonly reportDelayMs: number;
  /** Requests wait at the gateway while no worker would begin them within so long. */
  readonly windowMs: number;
  readonly seed: number;
  /** Time until a worker drains, by its number. */
  readonly drainAtMs?: ReadonlyMap<number, number>;
}

export type Contender = PolicyName | { readonly centralQueue: number };

export interface Outcome {
  readonly request: SimRequest;
  readonly worker: string;
  readonly latencyMs: number;
}

const QUEUE_MAX = 10_000;
const EVENTS_PER_REQUEST_MAX = 50_000;

/** Replays `trace` and says how long each request took, in the order of their ends. The same for the same arguments. */
export async function runTrace(
  trace: readonly SimRequest[],
  contender: Contender,
  world: World,
): Promise<readonly Outcome[]> {
  const sim = new Simulation();
  const workers = Array.from(
    { length: world.workers },
    (_, i) => new SimWorker(sim, { ...world, name: `w${i}`, queueMax: QUEUE_MAX }),
  );
  const outcomes: Outcome[] = [];
  const central = typeof contender === "object";
  const networkMs = central ? 0 : world.networkMs;

  const over = (run: () => void) => (networkMs === 0 ? run() : sim.after(networkMs, run));
  const send: Send = (request, worker, { accepted, finished }) => {
    over(() => {
      const report = worker.accept(request, () => {
        over(() => {
          outcomes.push({ request, worker: worker.name, latencyMs: sim.nowMs() - request.atMs });
          finished?.();
        });
      });
      if (accepted !== undefined) over(() => accepted(report));
    });
  };

  if (central) {
    const queue = new CentralQueue({ workers, send }, contender.centralQueue);
    for (const worker of workers) worker.onFree = () => queue.pull();
    arrive(sim, trace, (request) => queue.arrived(request));
  } else {
    const gateways = Array.from({ length: world.gateways }, (_, i) =>
      createPolicy(contender, {
        sim,
        workers,
        send,
        random: seededRandom(world.seed * 1000 + i),
        windowMs: world.windowMs,
      }),
    );
    for (const worker of workers) publish(sim, worker, gateways, world);
    arrive(sim, trace, (request) => gateways[request.gateway % gateways.length]!.arrived(request));
  }
  for (const [i, atMs] of world.drainAtMs ?? []) sim.after(atMs, () => workers[i]!.drain());

  await sim.run({ done: () => outcomes.length === trace.length, eventsMax: trace.length * EVENTS_PER_REQUEST_MAX });
  invariant(new Set(outcomes.map(({ request }) => request.id)).size === trace.length, "every request ends once");
  return outcomes;
}

/** One event at a time: the trace is long. */
function arrive(sim: Simulation, trace: readonly SimRequest[], arrived: (request: SimRequest) => void): void {
  const next = (i: number) => {
    const request = trace[i];
    if (request === undefined) return;
    sim.after(request.atMs - sim.nowMs(), () => {
      arrived(request);
      next(i + 1);
    });
  };
  next(0);
}

/** Every gateway hears a report at the same time: those that act on one old view together are the hard case. */
function publish(
  sim: Simulation,
  worker: SimWorker,
  gateways: readonly Policy[],
  { networkMs, reportDelayMs }: World,
): void {
  const tell = (state: SimState) => {
    for (const gateway of gateways) gateway.heard?.(worker, state);
  };
  let first = true;
  worker.publisher.watch((state) => {
    if (first) tell(state);
    else sim.after(networkMs + reportDelayMs, () => tell(state));
    first = false;
  });
}
