import { describe, expect, it } from "vitest";
import { type Claimant, FairShare } from "./fair-share.ts";

const A: Claimant = { jobId: "a", tenant: "small", weight: 1 };
const B: Claimant = { jobId: "b", tenant: "large", weight: 3 };

describe("FairShare", () => {
  it("gives tenants by weight: one of weight 3 three times as much", () => {
    expect(given(new FairShare(), [A, B], 400)).toEqual({ a: 100, b: 300 });
  });

  it("gives by device time, not by number: large pictures are fewer", () => {
    const other = { ...B, weight: 1 };
    expect(given(new FairShare(), [A, other], 300, ({ jobId }) => (jobId === "a" ? 200 : 100))).toEqual({
      a: 100,
      b: 200,
    });
  });

  it("gives the jobs of a tenant by turns, however many it has, and other tenants no less for it", () => {
    const many = ["m1", "m2", "m3"].map((jobId) => ({ jobId, tenant: "many", weight: 1 }));
    expect(given(new FairShare(), [...many, A], 600)).toEqual({ a: 300, m1: 100, m2: 100, m3: 100 });
  });

  it("begins who comes late with those that are there: no claim on the past, and no debt", () => {
    const share = new FairShare();
    given(share, [A], 1_000);
    expect(given(share, [A, B], 400)["b"]).toBeCloseTo(300, -1);
    const late = { jobId: "late", tenant: A.tenant, weight: 1 };
    expect(given(share, [A, late], 200)["late"]).toBeCloseTo(100, -1);
  });

  // A job that was paused for an hour, or a tenant that was held, had everything until it had caught up with all others.
  it("lets who was away for a while not catch up, whether it is a tenant or one of its jobs", () => {
    const share = new FairShare();
    const second = { ...A, jobId: "second" };
    given(share, [A, second, B], 16);
    given(share, [A], 1_000);
    expect(given(share, [A, second, B], 400)["b"]).toBeCloseTo(300, -1);
    given(share, [A], 1_000);
    expect(given(share, [A, second], 200)["second"]).toBeCloseTo(100, -1);
  });

  it("keeps the shares of those whose windows are full in between", () => {
    const share = new FairShare();
    const counts = { a: 0, b: 0 };
    for (let turn = 0; turn < 400; turn++) {
      counts[take(share, [A, B], 100) as "a" | "b"] += 1;
      // Then the window is full: each is found next, and given nothing.
      const next = share.next([A, B])!;
      share.next([A, B].filter((other) => other !== next));
    }
    expect(counts).toEqual({ a: 100, b: 300 });
  });

  it("gives a job that comes behind a long one every second item at once", () => {
    const share = new FairShare();
    const long = { jobId: "long", tenant: "shop", weight: 1 };
    const short = { ...long, jobId: "short" };
    given(share, [long], 100_000);
    const order = Array.from({ length: 20 }, () => take(share, [long, short], 100));
    expect(order.filter((jobId) => jobId === "short")).toHaveLength(10);
  });

  it("has nobody next where nobody claims", () => {
    expect(new FairShare().next([])).toBeUndefined();
  });
});

function take(share: FairShare, claimants: readonly Claimant[], deviceMs: number): string {
  const next = share.next(claimants)!;
  share.charge(next, deviceMs);
  return next.jobId;
}

/** How many of so many items each job got. */
function given(
  share: FairShare,
  claimants: readonly Claimant[],
  items: number,
  deviceMs: (claimant: Claimant) => number = () => 100,
): Record<string, number> {
  const counts: Record<string, number> = {};
  for (let i = 0; i < items; i++) {
    const next = share.next(claimants)!;
    share.charge(next, deviceMs(next));
    counts[next.jobId] = (counts[next.jobId] ?? 0) + 1;
  }
  return counts;
}
