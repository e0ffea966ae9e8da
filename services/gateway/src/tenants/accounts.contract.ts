import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type Accounts,
  dayOf,
  type Entered,
  type Entry,
  type JobTotal,
  type Lease,
  type Limits,
  type UsageRow,
} from "./accounts.ts";

export interface AccountsUnderTest {
  readonly accounts: Accounts;
  /** The same accounts as another gateway sees them: `accounts` itself where nothing is shared. */
  readonly elsewhere: Accounts;
  /** Lets the minute of a rate limit go by. */
  passMinute(): Promise<void>;
  nowMs(): number;
  stop(): Promise<void>;
}

const NO_LIMITS: Limits = {
  requestsPerMinute: undefined,
  imagesPerMinute: undefined,
  concurrentRequests: undefined,
  imagesPerMonth: undefined,
  deviceMsPerMonth: undefined,
};

/** What every adapter of Accounts does: each one's test runs it. */
export function describeAccounts(name: string, start: () => Promise<AccountsUnderTest>): void {
  describe(`${name} as Accounts`, () => {
    let under: AccountsUnderTest;
    let tenants = 0;
    beforeAll(async () => {
      under = await start();
    });
    afterAll(() => under.stop());

    const newTenant = () => `tenant-${tenants++}`;
    const entry = (tenant: string, limits: Partial<Limits>, more: Partial<Entry> = {}): Entry => ({
      tenant,
      limits: { ...NO_LIMITS, ...limits },
      images: 1,
      deviceMs: 0,
      ...more,
    });
    const row = (tenant: string, more: Partial<UsageRow> = {}): UsageRow => ({
      tenant,
      key: "key1",
      model: "tiny",
      day: dayOf(under.nowMs()),
      requests: 1,
      images: 1,
      cachedImages: 0,
      deviceMs: 100,
      costMicros: 7,
      ...more,
    });

    it.each(["requestsPerMinute", "imagesPerMinute", "concurrentRequests", "imagesPerMonth"] as const)(
      "lets exactly 10 of 100 through at once where %s is 10, whichever gateway they come to",
      async (limit) => {
        const tenant = newTenant();
        const entered = await Promise.all(
          Array.from({ length: 100 }, (_, i) =>
            (i % 2 === 0 ? under.accounts : under.elsewhere).enter(entry(tenant, { [limit]: 10 })),
          ),
        );
        expect(entered.filter(({ granted }) => granted)).toHaveLength(10);
      },
    );

    it("names the limit that was met and when to come back", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      await accounts.enter(entry(tenant, { requestsPerMinute: 1 }));
      const rate = refused(await accounts.enter(entry(tenant, { requestsPerMinute: 1 })));
      expect(rate.limit).toBe("requests_per_minute");
      expect(rate.retryAfterMs).toBeGreaterThan(0);
      expect(rate.retryAfterMs).toBeLessThanOrEqual(60_000);
      expect(rate.standing.requests).toMatchObject({ limit: 1, remaining: 0, resetMs: rate.retryAfterMs });
      const month = refused(await accounts.enter(entry(tenant, { imagesPerMonth: 1 })));
      expect(month.limit).toBe("images_per_month");
      const until = new Date(under.nowMs() + month.retryAfterMs);
      expect([until.getUTCDate(), until.getUTCHours()]).toEqual([1, 0]);
    });

    it("lets as many through again in the next minute", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      const limits = { requestsPerMinute: 2, imagesPerMinute: 10 };
      const ask = () => accounts.enter(entry(tenant, limits, { images: 3 }));
      expect([(await ask()).granted, (await ask()).granted, (await ask()).granted]).toEqual([true, true, false]);
      await under.passMinute();
      const again = granted(await ask());
      expect(again.standing.requests).toMatchObject({ limit: 2, remaining: 1 });
      expect(again.standing.images).toMatchObject({ limit: 10, remaining: 7 });
    });

    it("counts nothing of a request that any of the limits refuses", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      const limits = { requestsPerMinute: 3, imagesPerMinute: 4, concurrentRequests: 3, imagesPerMonth: 100 };
      for (let i = 0; i < 5; i++) refused(await accounts.enter(entry(tenant, limits, { images: 5 })));
      granted(await accounts.enter(entry(tenant, limits, { images: 2 })));
      const last = granted(await accounts.enter(entry(tenant, limits, { images: 2 })));
      expect(last.standing).toMatchObject({ requests: { remaining: 1 }, images: { remaining: 0 } });
    });

    it("frees a place at once, for the next request of the same caller", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      const limits = { concurrentRequests: 1 };
      for (let i = 0; i < 20; i++) {
        const { lease } = granted(await accounts.enter(entry(tenant, limits)));
        expect(refused(await accounts.enter(entry(tenant, limits))).limit).toBe("concurrent_requests");
        accounts.settle(lease, row(tenant));
      }
    });

    it("puts aside what a request may use, and takes back what it did not", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      const limits = { imagesPerMonth: 10, deviceMsPerMonth: 1_000 };
      const ask = (images: number, deviceMs: number) => accounts.enter(entry(tenant, limits, { images, deviceMs }));
      const first = granted(await ask(8, 500)).lease;
      refused(await ask(3, 10));
      accounts.settle(first, undefined); // it failed
      const second = granted(await ask(8, 1_000)).lease;
      expect(refused(await ask(1, 1)).limit).toBe("device_seconds_per_month");
      accounts.settle(second, row(tenant, { images: 4, deviceMs: 900 }));
      expect(refused(await ask(1, 101)).limit).toBe("device_seconds_per_month");
      expect(refused(await ask(7, 1)).limit).toBe("images_per_month");
      accounts.settle(granted(await ask(6, 100)).lease, row(tenant, { images: 6, deviceMs: 100 }));
      expect(refused(await ask(1, 0)).limit).toBe("images_per_month");
    });

    it("refuses what nobody predicted once the device seconds are used up", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      const limits = { deviceMsPerMonth: 1_000 };
      accounts.settle(granted(await accounts.enter(entry(tenant, limits))).lease, row(tenant, { deviceMs: 999 }));
      const { lease } = granted(await accounts.enter(entry(tenant, limits)));
      accounts.settle(lease, row(tenant, { deviceMs: 1 }));
      expect(refused(await accounts.enter(entry(tenant, limits))).limit).toBe("device_seconds_per_month");
    });

    it("counts towards a quota what was used before there was one", async () => {
      const { accounts } = under;
      const tenant = newTenant();
      accounts.settle(undefined, row(tenant, { images: 9 }));
      await booked(accounts);
      refused(await accounts.enter(entry(tenant, { imagesPerMonth: 10 }, { images: 2 })));
      granted(await accounts.enter(entry(tenant, { imagesPerMonth: 10 }, { images: 1 })));
    });

    it("keeps the book of use by key, model and day, for each tenant alone", async () => {
      const [mine, other] = [newTenant(), newTenant()];
      for (let i = 0; i < 25; i++) {
        under.accounts.settle(undefined, row(mine, { day: "2026-02-01" }));
        under.elsewhere.settle(undefined, row(mine, { day: "2026-02-01", key: "key2", cachedImages: 1, deviceMs: 0 }));
      }
      under.accounts.settle(undefined, row(mine, { day: "2026-02-03", images: 4 }));
      under.accounts.settle(undefined, row(mine, { day: "2026-03-01" }));
      under.accounts.settle(undefined, row(other, { day: "2026-02-02", model: "large" }));
      await booked(under.accounts, under.elsewhere);

      const day = { tenant: mine, model: "tiny", day: "2026-02-01", requests: 25, images: 25, costMicros: 175 };
      expect(await under.elsewhere.usage({ tenant: mine, from: "2026-02-01", to: "2026-02-28" })).toEqual([
        { ...day, key: "key1", cachedImages: 0, deviceMs: 2_500 },
        { ...day, key: "key2", cachedImages: 25, deviceMs: 0 },
        row(mine, { day: "2026-02-03", images: 4 }),
      ]);
      expect(await under.accounts.usage({ tenant: other, from: "2026-02-01", to: "2026-02-28" })).toEqual([
        row(other, { day: "2026-02-02", model: "large" }),
      ]);
      expect(await under.accounts.tenants()).toEqual(expect.arrayContaining([mine, other]));
    });

    describe("of a job that tells its totals", () => {
      const total = (tenant: string, images: number, more: Partial<JobTotal> = {}): JobTotal => ({
        tenant,
        jobId: "job_1",
        key: "key1",
        model: "tiny",
        images,
        deviceMs: images * 100,
        pricePerDeviceHour: 36, // a hundredth a second
        ...more,
      });
      const usage = async (tenant: string) => {
        const day = dayOf(under.nowMs());
        return under.elsewhere.usage({ tenant, from: day, to: day });
      };

      it("books what is new in each, whichever gateway they come to", async () => {
        const { accounts, elsewhere } = under;
        const tenant = newTenant();
        await accounts.bookTotals([total(tenant, 3)]);
        await elsewhere.bookTotals([total(tenant, 10), total(tenant, 4, { model: "large" })]);
        await accounts.bookTotals([total(tenant, 2, { jobId: "job_2" })]);

        const common = { tenant, key: "key1", day: dayOf(under.nowMs()), requests: 0, cachedImages: 0 };
        expect(await usage(tenant)).toEqual([
          { ...common, model: "large", images: 4, deviceMs: 400, costMicros: 4_000 },
          { ...common, model: "tiny", images: 12, deviceMs: 1_200, costMicros: 12_000 },
        ]);
        expect(await accounts.month(tenant)).toEqual({ images: 16, deviceMs: 1_600 });
        expect(await accounts.tenants()).toContain(tenant);
      });

      it("books nothing of one that comes again, or late", async () => {
        const { accounts, elsewhere } = under;
        const tenant = newTenant();
        await accounts.bookTotals([total(tenant, 10)]);
        const before = await usage(tenant);
        await Promise.all(
          Array.from({ length: 10 }, (_, i) => (i % 2 === 0 ? accounts : elsewhere).bookTotals([total(tenant, i)])),
        );
        await elsewhere.bookTotals([total(tenant, 10)]);
        expect(await usage(tenant)).toEqual(before);
        await elsewhere.bookTotals([total(tenant, 11)]);
        expect((await usage(tenant))[0]).toMatchObject({ images: 11, deviceMs: 1_100, costMicros: 11_000 });
      });

      it("takes the largest of each number alone", async () => {
        const { accounts } = under;
        const tenant = newTenant();
        await accounts.bookTotals([total(tenant, 10, { deviceMs: 1_000 })]);
        await accounts.bookTotals([total(tenant, 5, { deviceMs: 2_000 })]);
        await accounts.bookTotals([total(tenant, 10, { deviceMs: 1_500 })]);
        expect(await accounts.month(tenant)).toEqual({ images: 10, deviceMs: 2_000 });
      });

      it("counts them towards the month's quota, beside what requests used", async () => {
        const { accounts } = under;
        const tenant = newTenant();
        const limits = { imagesPerMonth: 20 };
        accounts.settle(granted(await accounts.enter(entry(tenant, limits))).lease, row(tenant));
        await booked(accounts);
        await accounts.bookTotals([total(tenant, 19)]);
        expect(await accounts.month(tenant)).toEqual({ images: 20, deviceMs: 2_000 });
        expect(refused(await accounts.enter(entry(tenant, limits))).limit).toBe("images_per_month");
      });

      it("says of a tenant that used nothing that it used nothing", async () => {
        expect(await under.accounts.month(newTenant())).toEqual({ images: 0, deviceMs: 0 });
      });
    });
  });
}

export function granted(entered: Entered): { lease: Lease; standing: Entered["standing"] } {
  expect(entered).toMatchObject({ granted: true });
  return entered as Extract<Entered, { granted: true }>;
}

export function refused(entered: Entered): Extract<Entered, { granted: false }> {
  expect(entered).toMatchObject({ granted: false });
  return entered as Extract<Entered, { granted: false }>;
}

/** Resolves when all that was settled is booked. */
export async function booked(...all: readonly Accounts[]): Promise<void> {
  while (all.some(({ unbooked }) => unbooked > 0)) await new Promise((resolve) => setTimeout(resolve, 5));
}
