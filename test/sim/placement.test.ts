import { describe, expect, it } from "vitest";
import { type Contender, type Outcome, runTrace, type World } from "./run-trace.ts";
import { p99Slowdown } from "./slowdown.ts";
import { drawTrace } from "./trace.ts";

const REQUESTS = 600;

const WORLD: World = {
  workers: 8,
  gateways: 2,
  discipline: "batches",
  gpu: "a10",
  residentMax: 4,
  networkMs: 1,
  reportDelayMs: 1,
  windowMs: Number.POSITIVE_INFINITY,
  seed: 1,
};

describe("placement over simulated workers", () => {
  it("writes the same history twice for one seed, and another for another", async () => {
    expect(await history({ seed: 3 })).toEqual(await history({ seed: 3 }));
    expect(await history({ seed: 4 })).not.toEqual(await history({ seed: 3 }));
  });

  it("answers every request once, under every policy and discipline", async () => {
    for (const discipline of ["fifo", "steps", "batches"] as const) {
      for (const contender of ["random", "round robin", "least requests", "declared cost", "ours"] as const) {
        const outcomes = await run(contender, { discipline });
        expect(new Set(outcomes.map(({ request }) => request.id)).size, `${contender}, ${discipline}`).toBe(REQUESTS);
      }
    }
  });

  it("never is faster than a worker of its own would be", async () => {
    for (const { latencyMs, request } of await run("ours", {})) expect(latencyMs).toBeGreaterThan(request.serviceMs);
  });

  it("sends nothing to a worker once it has heard that it drains", async () => {
    const drainAtMs = new Map([[2, 20_000]]);
    const outcomes = await run("ours", { drainAtMs });
    const onIt = outcomes.filter(({ worker }) => worker === "w2").map(({ request }) => request.atMs);
    expect(onIt.length).toBeGreaterThan(5);
    expect(Math.max(...onIt)).toBeLessThan(20_000 + 10); // a report's way
    expect(outcomes).toHaveLength(REQUESTS);
  });

  it("beats the fewest requests on this seed by more than 40 %, on workers that serve one request after another", async () => {
    const world = { discipline: "fifo", gateways: 1 } as const;
    const [ours, least] = [await run("ours", world), await run("least requests", world)];
    expect(p99Slowdown(ours)).toBeLessThan(0.6 * p99Slowdown(least));
  });

  it("is close to one queue for all there", async () => {
    const world = { discipline: "fifo", gateways: 1 } as const;
    const [ours, central] = [await run("ours", world), await run({ centralQueue: 1 }, world)];
    expect(p99Slowdown(ours)).toBeLessThan(1.15 * p99Slowdown(central));
  });

  it("answers everything too where requests are bound only to idle workers", async () => {
    const outcomes = await run("ours", { windowMs: 0, discipline: "fifo" });
    expect(outcomes).toHaveLength(REQUESTS);
  });

  it("loads models only where that is sooner than waiting: most requests find theirs in memory", async () => {
    const outcomes = await run("ours", { residentMax: 2 });
    expect(outcomes).toHaveLength(REQUESTS);
    const slow = outcomes.filter(({ request, latencyMs }) => latencyMs > request.serviceMs + request.model.loadMs);
    expect(slow.length).toBeLessThan(REQUESTS / 10);
  });
});

/** At nine tenths of what workers that do not batch could do. */
function run(contender: Contender, changes: Partial<World>): Promise<readonly Outcome[]> {
  const world = { ...WORLD, ...changes };
  const { seed, gateways, gpu } = world;
  const trace = drawTrace({ seed, requests: REQUESTS, arrivals: "poisson", perSecond: 8 * 0.29, gateways, gpu });
  return runTrace(trace, contender, world);
}

async function history(changes: Partial<World>): Promise<string[]> {
  const outcomes = await run("ours", changes);
  return outcomes.map(({ request, worker, latencyMs }) => `${request.id} on ${worker} in ${latencyMs}`);
}
