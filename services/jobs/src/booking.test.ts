import { ManualClock, ServingError } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { Booking } from "./booking.ts";
import type { TenantStanding, UsageTotal } from "./ports.ts";

describe("Booking", () => {
  it("tells totals that have changed, and none twice", async () => {
    const world = bookings([total("job_a", 3), total("job_b", 1)]);
    await world.booking.book();
    await world.booking.book();
    world.totals[0] = total("job_a", 5);
    await world.booking.book();
    expect(world.asked).toEqual([["job_a 3", "job_b 1"], ["job_a 5"]]);
  });

  it("tells the same totals again where the gateway did not answer, and goes on for itself", async () => {
    const world = bookings([total("job_a", 3)]);
    world.away = true;
    world.booking.start();
    await world.pass(6_000);
    world.away = false;
    await world.pass(6_000);
    expect(world.asked).toEqual([["job_a 3"], ["job_a 3"], ["job_a 3"], ["job_a 3"]]);
    world.totals[0] = total("job_a", 4);
    await world.booking.close();
    expect(world.asked.at(-1)).toEqual(["job_a 4"]);
    await world.pass(10_000);
    expect(world.asked).toHaveLength(5);
  });

  it("tells many in calls of 200, and after a call that failed none before the next time", async () => {
    const world = bookings(Array.from({ length: 450 }, (_, i) => total(`job_${i}`, 1)));
    await world.booking.book();
    expect(world.asked.map(({ length }) => length)).toEqual([200, 200, 50]);
    world.asked.length = 0;
    world.totals.forEach((_, i) => {
      world.totals[i] = total(`job_${i}`, 2);
    });
    world.away = true;
    await world.booking.book();
    expect(world.asked.map(({ length }) => length)).toEqual([200]);
  });

  it("asks about a tenant whose month is used up until it may go on, though nothing of it changed", async () => {
    const world = bookings([total("job_a", 3)]);
    world.exhausted = "images_per_month";
    for (let i = 0; i < 3; i++) await world.booking.book();
    world.exhausted = null;
    for (let i = 0; i < 3; i++) await world.booking.book();
    expect(world.asked).toHaveLength(4);
    expect(world.standings).toEqual([
      "shop images_per_month",
      "shop images_per_month",
      "shop images_per_month",
      "shop null",
    ]);
  });

  // Nothing of it was left to ask about, and its next job was held for ever.
  it("lets a tenant go on whose jobs are all gone: its next picture tells", async () => {
    const world = bookings([total("job_a", 3)]);
    world.exhausted = "images_per_month";
    await world.booking.book();
    world.totals.length = 0;
    await world.booking.book();
    await world.booking.book();
    expect(world.standings).toEqual(["shop images_per_month", "shop null"]);
  });

  it("forgets jobs that were deleted: an equal total of a new one of that name is told", async () => {
    const world = bookings([total("job_a", 3)]);
    await world.booking.book();
    world.totals.length = 0;
    await world.booking.book();
    world.totals.push(total("job_a", 3));
    await world.booking.book();
    expect(world.asked).toEqual([["job_a 3"], ["job_a 3"]]);
  });
});

function total(jobId: string, images: number): UsageTotal {
  return { jobId, tenant: "shop", keyId: null, model: "tiny", images, deviceMs: images * 10 };
}

function bookings(totals: UsageTotal[]) {
  const clock = new ManualClock();
  const world = {
    totals,
    away: false,
    exhausted: null as string | null,
    /** What the gateway was told, call by call. */
    asked: [] as string[][],
    standings: [] as string[],
    booking: undefined as unknown as Booking,
    pass: async (ms: number) => {
      for (let passed = 0; passed < ms; passed += 500) {
        clock.advance(500);
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
    },
  };
  const book = async (told: readonly UsageTotal[]): Promise<readonly TenantStanding[]> => {
    world.asked.push(told.map(({ jobId, images }) => `${jobId} ${images}`));
    if (world.away) throw new ServingError("NO_WORKER", "no gateway answers");
    return [{ tenant: "shop", exhausted: world.exhausted }];
  };
  world.booking = new Booking({
    gateway: { book },
    usage: () => totals,
    onStanding: (tenant, exhausted) => void world.standings.push(`${tenant} ${exhausted}`),
    clock,
    log: createLogger("jobs", "silent"),
  });
  return world;
}
