import { describe, expect, it } from "vitest";
import { backoffMs } from "./backoff.ts";

describe("backoffMs", () => {
  it("doubles from a tenth of a second and stops at three seconds", () => {
    const longest = [1, 2, 3, 4, 5, 6, 7, 1_000].map((failures) => backoffMs(failures, { next: () => 1 }));
    expect(longest).toEqual([100, 200, 400, 800, 1_600, 3_000, 3_000, 3_000]);
  });

  it("draws the upper half", () => {
    expect(backoffMs(3, { next: () => 0 })).toBe(200);
    expect(backoffMs(3, { next: () => 0.5 })).toBe(300);
  });
});
