import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DEFAULT_RULES, HorizontalScaler, type Reading } from "./horizontal-scaler.ts";
import { drawRise, type Metric, recoveryMs, runScaling, type Scaled } from "./run-scaling.ts";

describe("the rules of a HorizontalPodAutoscaler", () => {
  const scaler = () => new HorizontalScaler({ ...DEFAULT_RULES, min: 1, max: 50 });
  const work = (total: number): Reading => ({ total, averageValue: 10 });

  it("asks for as many as share the sum at the target's value each, rounded up", () => {
    expect(scaler().decide(work(95), 8, 0)).toBe(10);
  });

  it("does nothing within the tolerance of a tenth", () => {
    expect(scaler().decide(work(109), 10, 0)).toBe(10);
    expect(scaler().decide(work(111), 10, 0)).toBe(12);
  });

  it("grows to twice as many or by four within 15 s, whichever is more", () => {
    const subject = scaler();
    expect(subject.decide(work(400), 2, 0)).toBe(6);
    expect(subject.decide(work(400), 6, 5_000)).toBe(6); // of the same 15 s
    expect(subject.decide(work(400), 6, 15_000)).toBe(12);
    expect(subject.decide(work(400), 12, 30_000)).toBe(24);
  });

  it("takes away only what nothing of the last five minutes asked for", () => {
    const subject = scaler();
    expect(subject.decide(work(100), 10, 0)).toBe(10);
    expect(subject.decide(work(20), 10, 15_000)).toBe(10);
    expect(subject.decide(work(20), 10, 299_999)).toBe(10);
    expect(subject.decide(work(20), 10, 315_000)).toBe(2);
  });

  it("stays within its bounds", () => {
    expect(scaler().decide(work(0), 1, 0)).toBe(1);
    expect(scaler().decide(work(10_000), 49, 0)).toBe(50);
  });

  it("takes pods that are not ready for idle before it asks for more by utilisation", () => {
    const busy = (starting: number): Reading => ({ utilisation: [1, 1, 1, 1], target: 0.5, starting });
    expect(scaler().decide(busy(0), 4, 0)).toBe(8);
    expect(scaler().decide(busy(2), 6, 0)).toBe(8);
    expect(scaler().decide(busy(4), 8, 0)).toBe(8);
  });
});

describe("a fleet that is resized", () => {
  const rise = {
    ...{ seed: 5, gpu: "a10" as const, perSecond: 0.5, times: 6 },
    ...{ riseAtMs: 60_000, riseMs: 20_000, fallAtMs: 240_000, endMs: 660_000 },
  };
  const world = { gpu: "a10" as const, workersMin: 2, workersMax: 12, startMs: 20_000, scrapeMs: 5_000, syncMs: 5_000 };
  const run = (metric: Metric) => runScaling(drawRise(rise), metric, { ...world, seed: 1 });

  it("writes the same history twice for one seed", async () => {
    const digest = ({ outcomes, sizes }: Scaled) =>
      JSON.stringify([sizes, outcomes.map(({ request, latencyMs }) => [request.id, latencyMs])]);
    const metric = { by: "work", target: 20 } as const;
    expect(digest(await run(metric))).toBe(digest(await run(metric)));
  });

  it("follows the traffic up and down under every metric, and answers every request once", async () => {
    for (const metric of [
      { by: "work", target: 20 },
      { by: "requests", target: 1 },
      { by: "utilisation", target: 0.5 },
    ] as const) {
      const { outcomes, sizes, peakWorkers, paidMs, busyMs } = await run(metric);
      expect(new Set(outcomes.map(({ request }) => request.id)).size, metric.by).toBe(drawRise(rise).length);
      expect(peakWorkers, metric.by).toBeGreaterThan(4);
      expect(peakWorkers, metric.by).toBeLessThanOrEqual(12);
      expect(sizes.findLast(({ atMs }) => atMs < rise.endMs)!.ready, metric.by).toBeLessThan(peakWorkers);
      expect(busyMs, metric.by).toBeLessThan(paidMs);
    }
  });

  it("rises as it is told: as many requests as the rates say, within their chance", () => {
    const trace = drawRise(rise);
    const within = (from: number, to: number) => trace.filter(({ atMs }) => atMs >= from && atMs < to).length;
    // Poisson: four standard deviations.
    const expected = (count: number) => ({ least: count - 4 * Math.sqrt(count), most: count + 4 * Math.sqrt(count) });
    for (const [count, from, to] of [
      [30, 0, 60_000],
      [480, 80_000, 240_000],
      [200, 260_000, 660_000],
    ] as const) {
      const { least, most } = expected(count);
      expect(within(from, to)).toBeGreaterThan(least);
      expect(within(from, to)).toBeLessThan(most);
    }
  });

  it("has recovered when the last half minute in which waits were long is over", () => {
    const outcome = (atMs: number, waitMs: number) => ({
      request: { atMs, serviceMs: 1_000 } as never,
      latencyMs: 1_000 + waitMs,
    });
    const outcomes = [outcome(100_000, 0), outcome(130_000, 20_000), outcome(150_000, 20_000), outcome(190_000, 0)];
    const times = { riseAtMs: 100_000, fallAtMs: 300_000 };
    // The one that arrived 50 s after the rise leaves the window of 30 s at 80 s.
    expect(recoveryMs(outcomes, times, { targetMs: 10_000, windowMs: 30_000 })).toBe(75_000);
    expect(recoveryMs(outcomes, times, { targetMs: 30_000, windowMs: 30_000 })).toBe(0);
  });
});

describe("bench autoscale", () => {
  it("measures the target that the chart has", () => {
    const root = join(import.meta.dirname, "../..");
    const chart = readFileSync(join(root, "helm/atelier/values.yaml"), "utf8");
    const bench = readFileSync(join(root, "test/bench/autoscale.ts"), "utf8");
    expect(/^ +targetSeconds: (\d+)$/m.exec(chart)![1]).toBe(/OUR_TARGET_SECONDS = (\d+)/.exec(bench)![1]);
  });
});
