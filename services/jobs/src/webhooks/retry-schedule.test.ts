import { seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { afterAttempt, type CallOutcome } from "./retry-schedule.ts";

const failed: CallOutcome = { kind: "failed" };
const HOUR_MS = 3_600_000;

describe("a call that failed", () => {
  it("is tried again after 5 s, then twice as long each time up to an hour, for a day", () => {
    const waits = waitsMs({ next: () => 1 });
    expect(waits.slice(0, 12).map((ms) => ms / 1_000)).toEqual([
      5, 10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600,
    ]);
    const totalMs = waits.reduce((sum, ms) => sum + ms, 0);
    expect(totalMs).toBeLessThanOrEqual(24 * HOUR_MS);
    expect(totalMs).toBeGreaterThan(23 * HOUR_MS);
  });

  it("waits between the half and the whole of that, drawn anew each time", () => {
    const whole = waitsMs({ next: () => 1 });
    const drawn = waitsMs(seededRandom(1));
    for (const [i, ms] of drawn.slice(0, 20).entries()) {
      expect(ms).toBeGreaterThanOrEqual(whole[i]! / 2);
      expect(ms).toBeLessThanOrEqual(whole[i]!);
    }
    expect(waitsMs(seededRandom(2))[0]).not.toBe(drawn[0]);
  });

  it("waits as long as the receiver asked, up to an hour", () => {
    const at = (retryAfterMs: number) =>
      afterAttempt({ kind: "failed", retryAfterMs }, { tries: 1, askedAtMs: 0, nowMs: 0 }, seededRandom(1));
    expect(at(120_000)).toEqual({ do: "retry", atMs: 120_000 });
    expect(at(9 * HOUR_MS)).toEqual({ do: "retry", atMs: HOUR_MS });
  });

  it("ends for good when it was taken, or when the receiver wants no more", () => {
    const at = { tries: 1, askedAtMs: 0, nowMs: 0 };
    expect(afterAttempt({ kind: "delivered" }, at, seededRandom(1))).toEqual({ do: "nothing", status: "delivered" });
    expect(afterAttempt({ kind: "gone" }, at, seededRandom(1))).toEqual({ do: "nothing", status: "stopped" });
  });
});

/** Until it is given up. */
function waitsMs(random: { next(): number }): number[] {
  const waits: number[] = [];
  for (let nowMs = 0; ; ) {
    const next = afterAttempt(failed, { tries: waits.length + 1, askedAtMs: 0, nowMs }, random);
    if (next.do === "nothing") return waits;
    waits.push(next.atMs - nowMs);
    nowMs = next.atMs;
  }
}
