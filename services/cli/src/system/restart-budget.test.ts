import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { RestartBudget } from "./restart-budget.ts";

const limits = { restartsMax: 4, windowMs: 60_000, firstDelayMs: 100, delayMsMax: 500 };

describe("RestartBudget", () => {
  it("waits twice as long each time, up to a limit, and then says no", () => {
    const budget = new RestartBudget(new ManualClock(), limits);
    expect([1, 2, 3, 4, 5].map(() => budget.take())).toEqual([100, 200, 400, 500, undefined]);
  });

  it("forgets restarts that are long past", () => {
    const clock = new ManualClock();
    const budget = new RestartBudget(clock, limits);
    for (let i = 0; i < 4; i++) budget.take();
    clock.advance(limits.windowMs);
    expect(budget.take()).toBe(100);
  });
});
