import { type Contender, runTrace, type World } from "../sim/run-trace.ts";
import { DISCIPLINES, type Discipline } from "../sim/sim-worker.ts";
import { atRank, slowdowns } from "../sim/slowdown.ts";
import { ARRIVALS, type Arrivals, denoiseMs, drawTrace } from "../sim/trace.ts";
import { type Bench, count, type Goal, printGoals, printTable, round } from "./support/bench.ts";

const GPU = "a10";
const POLICIES = ["random", "round robin", "least requests", "declared cost", "ours"] as const;
/** How many requests a worker may have from the central queue: the best of these is what we are compared with. */
const CENTRAL: Readonly<Record<Discipline, readonly number[]>> = { fifo: [1], steps: [1, 2, 4], batches: [4, 8] };
const FLEETS = [
  { workers: 16, gateways: 1 },
  { workers: 64, gateways: 4 },
] as const;
type Fleet = (typeof FLEETS)[number];

/**
 * Virtual time: no figure depends on the machine. Headline figures are those of the textbook's workers (one request
 * after another, in the order of arrival), for which one queue for all is the best that could be; the same for our own
 * workers, which go on with the shortest and batch, stands beside it.
 */
export const bench: Bench = {
  description: "who gets a request: p99 slowdown under six ways to place, against one queue for all (simulated fleet)",
  options: {
    requests: { default: "4000", help: "requests of each trace" },
    seeds: { default: "2", help: "traces of each kind, counted together" },
    load: { default: "85", help: "per cent of what the fleet could do" },
    workers: { default: "fifo,batches", help: `kinds of worker, of ${DISCIPLINES.join(", ")}` },
  },
  async run(options) {
    const seeds = count(options, "seeds");
    const requests = count(options, "requests");
    const load = count(options, "load") / 100;
    const disciplines = options["workers"]!.split(",").map(disciplineOf);
    const rows: Row[] = [];
    for (const discipline of disciplines) {
      const perWorker = load * (await capacityPerSecond(discipline));
      for (const arrivals of ARRIVALS) {
        for (const fleet of FLEETS) {
          const row = await compare({
            discipline,
            arrivals,
            fleet,
            seeds,
            requests,
            perSecond: perWorker * fleet.workers,
          });
          printRow(row, load);
          rows.push(row);
        }
      }
    }
    return report(rows, { seeds, requests, load });
  },
};

interface Case {
  readonly discipline: Discipline;
  readonly arrivals: Arrivals;
  readonly fleet: Fleet;
  readonly seeds: number;
  readonly requests: number;
  readonly perSecond: number;
}

interface Figures {
  readonly p50: number;
  readonly p99: number;
  readonly meanSlowdown: number;
  /** Milliseconds. */
  readonly p99LatencyMs: number;
}

interface Row extends Case {
  readonly by: ReadonlyMap<string, Figures>;
}

async function compare(which: Case): Promise<Row> {
  const by = new Map<string, Figures>();
  for (const policy of POLICIES) by.set(policy, await measure(which, policy));
  const central: Figures[] = [];
  for (const centralQueue of CENTRAL[which.discipline]) central.push(await measure(which, { centralQueue }));
  by.set(
    "one queue for all",
    central.reduce((best, each) => (each.p99 < best.p99 ? each : best)),
  );
  return { ...which, by };
}

/** All traces of a case under one contender. */
async function measure({ discipline, arrivals, fleet, seeds, requests, perSecond }: Case, contender: Contender) {
  const all: number[] = [];
  const latencies: number[] = [];
  for (let seed = 1; seed <= seeds; seed++) {
    const trace = drawTrace({ seed, requests, arrivals, perSecond, gateways: fleet.gateways, gpu: GPU });
    const outcomes = await runTrace(trace, contender, { ...WORLD, ...fleet, discipline, seed });
    all.push(...slowdowns(outcomes));
    latencies.push(...outcomes.map(({ latencyMs }) => latencyMs));
  }
  const sorted = Float64Array.from(all).sort();
  return {
    p50: atRank(sorted, 0.5),
    p99: atRank(sorted, 0.99),
    meanSlowdown: sorted.reduce((sum, each) => sum + each, 0) / sorted.length,
    p99LatencyMs: atRank(Float64Array.from(latencies).sort(), 0.99),
  };
}

/** A millisecond each way on the network, and two until a report is on its way: views are 3 to 8 ms old after a change. */
const WORLD: Omit<World, "workers" | "gateways" | "discipline" | "seed"> = {
  gpu: GPU,
  residentMax: 4,
  networkMs: 1,
  reportDelayMs: 2,
  windowMs: Number.POSITIVE_INFINITY,
};

/** What one worker can do: of those that batch, as measured with all requests there from the start. */
async function capacityPerSecond(discipline: Discipline): Promise<number> {
  const options = { seed: 99, requests: 1200, arrivals: "poisson", gateways: 1, gpu: GPU } as const;
  if (discipline !== "batches") {
    const trace = drawTrace({ ...options, requests: 20_000, perSecond: 1 });
    return 1000 / (trace.reduce((sum, request) => sum + denoiseMs(request, GPU), 0) / trace.length);
  }
  const workers = 4;
  const trace = drawTrace({ ...options, perSecond: 1000 });
  const outcomes = await runTrace(trace, { centralQueue: 8 }, { ...WORLD, workers, gateways: 1, discipline, seed: 1 });
  // Until nine tenths are done: at the end the workers run dry one by one.
  const done = outcomes.map(({ request, latencyMs }) => request.atMs + latencyMs).sort((a, b) => a - b);
  const share = Math.floor(0.9 * done.length);
  return share / (done[share]! / 1000) / workers;
}

function printRow({ discipline, arrivals, fleet, by }: Row, load: number): void {
  const { workers, gateways } = fleet;
  const kind = { fifo: "one request after another", steps: "step by step", batches: "step by step in batches" }[
    discipline
  ];
  console.log(`\n${workers} workers (${kind}), ${gateways} gateway(s), ${arrivals} arrivals, load ${load}:`);
  const central = by.get("one queue for all")!;
  printTable([
    ["placed by", "p99 slowdown", "of one queue", "p50", "mean", "p99 latency, s"],
    ...[...by].map(([name, { p99, p50, meanSlowdown, p99LatencyMs }]) => [
      name,
      p99.toFixed(2),
      (p99 / central.p99).toFixed(2),
      p50.toFixed(2),
      meanSlowdown.toFixed(2),
      (p99LatencyMs / 1000).toFixed(1),
    ]),
  ]);
}

function report(rows: readonly Row[], settings: { seeds: number; requests: number; load: number }) {
  const overLeast = (row: Row) => row.by.get("ours")!.p99 / row.by.get("least requests")!.p99;
  const overCentral = (row: Row) => row.by.get("ours")!.p99 / row.by.get("one queue for all")!.p99;
  const name = (row: Row) =>
    `${row.fleet.workers} workers, ${row.fleet.gateways} gateway(s), ${row.arrivals}, ${row.discipline}`;
  const goals: Goal[] = rows.flatMap((row) => [
    { name: `${name(row)}: over least requests`, value: overLeast(row), atMost: 0.6 },
    {
      name: `${name(row)}: over one queue for all`,
      value: overCentral(row),
      atMost: row.fleet.gateways === 1 ? 1.15 : 1.3,
    },
  ]);
  printGoals(goals);
  const [headline] = rows;
  console.log(`\nratio: p99 slowdown of ours over that of least requests, ${name(headline!)}; less is better.`);
  return {
    ratio: round(overLeast(headline!), 3),
    goal: 0.6,
    less_is_better: true as const,
    ...settings,
    cases: rows.map((row) => ({
      workers: row.fleet.workers,
      gateways: row.fleet.gateways,
      arrivals: row.arrivals,
      discipline: row.discipline,
      over_least_requests: round(overLeast(row), 3),
      over_one_queue: round(overCentral(row), 3),
      p99_slowdown: Object.fromEntries(
        [...row.by].map(([policy, { p99 }]) => [policy.replaceAll(" ", "_"), round(p99)]),
      ),
    })),
  };
}

function disciplineOf(name: string): Discipline {
  const discipline = DISCIPLINES.find((each) => each === name.trim());
  if (discipline === undefined) throw new Error(`--workers names "${name}": it must be of ${DISCIPLINES.join(", ")}`);
  return discipline;
}
