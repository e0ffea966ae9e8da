import { type ErrorCode, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { Outliers } from "./outliers.ts";

describe("Outliers", () => {
  it("leaves a worker out after five failures in a row, for ten seconds", () => {
    const { fail, clock, trace, outliers } = watched();
    fail("a", 4);
    expect(trace).toEqual([]);
    fail("a");
    expect(trace).toEqual(["0 a out for 10000"]);
    expect(outliers.returnsAtMs("a")).toBe(10_000);
    clock.advance(10_000);
    expect(trace).toEqual(["0 a out for 10000", "10000 a back"]);
    expect(outliers.returnsAtMs("a")).toBeUndefined();
  });

  it("begins to count again with every success", () => {
    const { fail, outliers, trace } = watched();
    fail("a", 4);
    outliers.ended("a", undefined);
    fail("a", 4);
    expect(trace).toEqual([]);
  });

  it("leaves one that came back and failed again out for twice as long, up to five minutes", () => {
    const { fail, clock, trace } = watched();
    fail("a", 5);
    for (let again = 0; again < 6; again++) {
      clock.advance(300_000);
      fail("a");
    }
    const times = trace.filter((line) => line.includes("out")).map((line) => Number(line.split(" ").at(-1)));
    expect(times).toEqual([10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]);
  });

  it("clears one that came back and succeeded", () => {
    const { fail, clock, trace, outliers } = watched();
    fail("a", 5);
    clock.advance(10_000);
    outliers.ended("a", undefined);
    fail("a", 4);
    expect(trace).toHaveLength(2);
  });

  it("is not moved by what began before a worker was left out", () => {
    const { fail, clock, trace, outliers } = watched();
    fail("a", 9);
    outliers.ended("a", undefined);
    expect(trace).toHaveLength(1);
    clock.advance(10_000);
    fail("a");
    expect(trace.at(-1)).toBe("10000 a out for 20000");
  });

  it("never leaves out more than half of the fleet, and none of one worker", () => {
    const four = watched(4);
    for (const address of ["a", "b", "c", "d"]) four.fail(address, 5);
    expect(four.trace).toEqual(["0 a out for 10000", "0 b out for 10000"]);
    const one = watched(1);
    one.fail("a", 50);
    expect(one.trace).toEqual([]);
  });

  it.each<ErrorCode>([
    "OVERLOADED",
    "DRAINING",
    "CANCELLED",
    "INVALID_REQUEST",
    "DEADLINE_EXCEEDED",
    "NUMERIC_FAILURE",
  ])("takes %s for no fault of the worker's", (code) => {
    const { fail, trace } = watched();
    fail("a", 50, code);
    expect(trace).toEqual([]);
  });

  it("forgets one that has left, its timer too", () => {
    const { fail, clock, trace, outliers } = watched();
    fail("a", 5);
    outliers.forget("a");
    clock.advance(60_000);
    expect(trace).toEqual(["0 a out for 10000"]);
    expect(outliers.returnsAtMs("a")).toBeUndefined();
  });
});

function watched(fleetSize = 4) {
  const clock = new ManualClock();
  const trace: string[] = [];
  const outliers = new Outliers({
    clock,
    fleetSize: () => fleetSize,
    onEjected: (address, forMs) => trace.push(`${clock.nowMs()} ${address} out for ${forMs}`),
    onReturned: (address) => trace.push(`${clock.nowMs()} ${address} back`),
  });
  return {
    clock,
    trace,
    outliers,
    fail: (address: string, times = 1, code: ErrorCode = "WORKER_LOST") => {
      for (let i = 0; i < times; i++) outliers.ended(address, new ServingError(code, "as the test says"));
    },
  };
}
