import { describe, expect, it } from "vitest";
import { duration, grouped, money, size } from "./amounts.ts";

describe("amounts, as people read them", () => {
  it("are times", () => {
    const times = [0, 400, 45_000, 89_000, 90_000, 12 * 60_000, 200 * 60_000, 52 * 3_600_000];
    expect(times.map(duration)).toEqual(["0 s", "1 s", "45 s", "89 s", "2 min", "12 min", "3 h 20 min", "2 d 4 h"]);
  });

  it("are counts, sizes and sums", () => {
    expect(grouped(1_234_567)).toBe("1,234,567");
    expect([12, 2_048, 5_500_000, 3 * 2 ** 40].map(size)).toEqual(["12 B", "2.0 KiB", "5.2 MiB", "3.0 TiB"]);
    expect([0, 12.345, 0.00042].map((sum) => money(sum, "EUR"))).toEqual(["0.00 EUR", "12.35 EUR", "0.000420 EUR"]);
  });
});
