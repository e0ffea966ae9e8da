import { describe, expect, it } from "vitest";
import { BusyRatio } from "./busy-ratio.ts";

describe("BusyRatio", () => {
  it("is the share of the window in which something ran, lanes side by side counting for their parts", () => {
    const busy = new BusyRatio(1000);
    expect(busy.at(5000)).toBe(0);
    busy.ran(4000, 4600, 1);
    busy.ran(4600, 5000, 0.25);
    busy.ran(4600, 4800, 0.25);
    expect(busy.at(5000)).toBeCloseTo(0.6 + 0.1 + 0.05);
  });

  it("forgets what is out of the window, and counts the part that is in it", () => {
    const busy = new BusyRatio(1000);
    busy.ran(0, 1000, 1);
    expect(busy.at(1400)).toBeCloseTo(0.6);
    expect(busy.at(2001)).toBe(0);
  });
});
