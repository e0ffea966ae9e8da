import { describe, expect, it } from "vitest";
import { GpuTimer } from "./gpu-timer.ts";

describe("GpuTimer", () => {
  it("adds up no lateness of its timer", async () => {
    const clock = lateClock(0.9);
    const timer = new GpuTimer({ timer: clock });
    for (let step = 0; step < 100; step++) await timer.run(14.3, () => {});
    expect(clock.nowMs()).toBeGreaterThan(1430 - 1);
    expect(clock.nowMs()).toBeLessThan(1430 + 1);
  });

  it("counts the work that stands in for the GPU's as part of the run, and what happens between runs as no part", async () => {
    const clock = lateClock(0);
    const timer = new GpuTimer({ timer: clock });
    const result = await timer.run(10, () => {
      clock.pass(4);
      return "done";
    });
    expect([result, clock.nowMs()]).toEqual(["done", 10]);
    clock.pass(7);
    await timer.run(10, () => {});
    expect(clock.nowMs()).toBe(27);
  });

  it("does not hurry to make up for a machine that was too busy", async () => {
    const clock = lateClock(0);
    const timer = new GpuTimer({ timer: clock });
    await timer.run(10, () => clock.pass(100));
    await timer.run(10, () => {});
    expect(clock.nowMs()).toBe(105);
  });
});

/** A clock that moves when it is slept on, and wakes so much late. */
function lateClock(lateMs: number) {
  let now = 0;
  return {
    nowMs: () => now,
    async sleep(ms: number) {
      now += ms + lateMs;
    },
    pass(ms: number) {
      now += ms;
    },
  };
}
