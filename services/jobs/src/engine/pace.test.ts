import { describe, expect, it } from "vitest";
import { Pace, windowOf } from "./pace.ts";

describe("Pace", () => {
  it("is what ended over the time since the first, and then over the last while", () => {
    const pace = new Pace(10_000);
    expect(pace.at(0)).toEqual({ items: 0, deviceMs: 0 });
    for (let ms = 0; ms < 30_000; ms += 100) pace.note(ms, 50);
    expect(pace.at(29_999).items).toBeCloseTo(0.01, 3);
    expect(pace.at(29_999).deviceMs).toBeCloseTo(0.5, 1);
    expect(pace.at(60_000)).toEqual({ items: 0, deviceMs: 0 });
  });

  it("takes the first second's items as a second's", () => {
    const pace = new Pace(10_000);
    for (let i = 0; i < 8; i++) pace.note(5, 0);
    expect(pace.at(6).items).toBe(8 / 1_000);
  });

  it("tells what is left by device time where items say what they took, otherwise by number", () => {
    const pace = new Pace(10_000);
    expect(pace.etaMs(0, { items: 5, deviceMs: 100 })).toBeUndefined();
    pace.note(0, 0);
    expect(pace.etaMs(1_000, { items: 5, deviceMs: 100 })).toBe(5_000);
    pace.note(0, 200);
    expect(pace.etaMs(1_000, { items: 5, deviceMs: 1_000 })).toBe(5_000);
    expect(pace.etaMs(1_000, { items: 5, deviceMs: 2_000 })).toBe(10_000);
  });
});

describe("windowOf", () => {
  it("is five seconds of what is taken, 64 at least and 5,000 at most", () => {
    expect(windowOf(paced(0), 10_000)).toBe(64);
    expect(windowOf(paced(5), 10_000)).toBe(64);
    expect(windowOf(paced(100), 10_000)).toBe(500);
    expect(windowOf(paced(10_000), 10_000)).toBe(5_000);
  });
});

/** Eleven seconds at so many items a second: its window is full. */
function paced(itemsPerSecond: number): Pace {
  const pace = new Pace(10_000);
  for (let second = 0; second <= 10; second++) for (let i = 0; i < itemsPerSecond; i++) pace.note(second * 1_000, 0);
  return pace;
}
