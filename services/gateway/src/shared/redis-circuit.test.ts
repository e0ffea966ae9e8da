import { ManualClock, seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { RedisCircuit } from "./redis-circuit.ts";

describe("RedisCircuit", () => {
  it("is open until the first probe has succeeded", async () => {
    const { circuit } = circuitWithRedis();
    expect(circuit.open).toBe(true);
    await circuit.probe();
    expect(circuit.open).toBe(false);
  });

  it("opens after three failures in a row, and not after three with an answer between them", async () => {
    const { circuit, changes } = circuitWithRedis();
    await circuit.probe();
    circuit.failed("1");
    circuit.failed("2");
    circuit.succeeded();
    circuit.failed("3");
    circuit.failed("4");
    expect(circuit.open).toBe(false);
    circuit.failed("5");
    circuit.failed("6");
    expect(changes).toEqual(["closed", "open: 5"]);
  });

  it("probes by itself until Redis answers, ever more rarely, at most a second apart", async () => {
    const { circuit, clock, redis, probesAtMs } = circuitWithRedis();
    await circuit.probe();
    redis.answers = false;
    for (const why of ["1", "2", "3"]) circuit.failed(why);
    await pass(clock, 10_000);
    const pausesMs = probesAtMs.slice(1).map((atMs, i) => atMs - probesAtMs[i]!);
    expect(pausesMs[0]).toBeLessThanOrEqual(100);
    expect(Math.max(...pausesMs)).toBeLessThanOrEqual(1_000);
    expect(pausesMs.slice(5).every((pauseMs) => pauseMs >= 500)).toBe(true);
    expect(circuit.open).toBe(true);
    redis.answers = true;
    await pass(clock, 1_000);
    expect(circuit.open).toBe(false);
  });

  it("does not probe in step with another gateway's", async () => {
    const [one, other] = [1, 2].map((seed) => circuitWithRedis({ seed }));
    for (const { circuit, clock, redis } of [one!, other!]) {
      redis.answers = false;
      await circuit.probe();
      await pass(clock, 5_000);
    }
    expect(one!.probesAtMs).not.toEqual(other!.probesAtMs);
  });

  it("finds out about a loss by its heartbeat when nobody asks anything", async () => {
    const { circuit, clock, redis, changes } = circuitWithRedis();
    await circuit.probe();
    redis.answers = false;
    await pass(clock, 7_000);
    expect(changes).toEqual(["closed", "open: no answer"]);
  });

  it("keeps its heartbeat to itself while others are answered", async () => {
    const { circuit, clock, probesAtMs } = circuitWithRedis();
    await circuit.probe();
    for (let i = 0; i < 100; i++) {
      await pass(clock, 100);
      circuit.succeeded();
    }
    expect(probesAtMs).toEqual([0]);
  });

  it("probes no more once it is closed for good", async () => {
    const { circuit, clock, redis, probesAtMs } = circuitWithRedis();
    redis.answers = false;
    await circuit.probe();
    circuit.close();
    await pass(clock, 5_000);
    expect(probesAtMs).toEqual([0]);
  });
});

function circuitWithRedis({ seed = 1 } = {}) {
  const clock = new ManualClock();
  const redis = { answers: true };
  const probesAtMs: number[] = [];
  const changes: string[] = [];
  const circuit = new RedisCircuit({
    clock,
    random: seededRandom(seed),
    probe: async () => {
      probesAtMs.push(clock.nowMs());
      if (!redis.answers) throw new Error("no answer");
    },
    changed: ({ open }, why) =>
      changes.push(open ? `open: ${why instanceof Error ? why.message : String(why)}` : "closed"),
  });
  return { circuit, clock, redis, probesAtMs, changes };
}

/** In small steps, so that what awaits a probe goes on between them. */
async function pass(clock: ManualClock, ms: number): Promise<void> {
  for (let passedMs = 0; passedMs < ms; passedMs += 10) {
    clock.advance(10);
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
}
