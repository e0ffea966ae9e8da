import { seededRandom, systemClock } from "@atelier/core";
import { StoreUnavailable } from "@atelier/gateway/shared";
import {
  type Accounts,
  dayOf,
  type Lease,
  LIMIT_NAMES,
  MemoryLimits,
  RedisAccounts,
  type UsageRow,
} from "@atelier/gateway/tenants";
import { type AccountsUnderTest, booked, describeAccounts, granted, refused } from "@atelier/gateway/testing/accounts";
import { createLogger } from "@atelier/telemetry";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type RedisProcess, startRedis, startRedisCluster } from "../support/redis.ts";
import { type OpenLink, openRedisLink } from "../support/redis-link.ts";

const log = createLogger("test", "silent");
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const WINDOW_MS = 400;

describe.each([
  ["one Redis", startRedis],
  ["a Redis Cluster", startRedisCluster],
] as const)("on %s", (_where, startServers) => {
  describeAccounts("RedisAccounts", () => twoGateways(startServers));
});

async function twoGateways(startServers: typeof startRedis | typeof startRedisCluster): Promise<AccountsUnderTest> {
  const redis = await startServers();
  const links = await Promise.all([openRedisLink(redis.url), openRedisLink(redis.url)]);
  const [accounts, elsewhere] = links.map(
    ({ link }) => new RedisAccounts({ link, clock: systemClock, log, windowMs: WINDOW_MS }),
  );
  return {
    accounts: accounts!,
    elsewhere: elsewhere!,
    passMinute: () => sleep(WINDOW_MS + 50).then(() => {}),
    nowMs: () => Date.now(),
    stop: async () => {
      await Promise.all([accounts!.close(), elsewhere!.close()]);
      for (const { link } of links) link.close();
      await redis.stop();
    },
  };
}

describe("RedisAccounts", () => {
  let redis: RedisProcess;
  let open: OpenLink[];
  let tenant = 0;
  const limits = {
    requestsPerMinute: undefined,
    imagesPerMinute: undefined,
    concurrentRequests: undefined,
    imagesPerMonth: undefined,
    deviceMsPerMonth: undefined,
  };
  const entry = (more: Partial<typeof limits | Record<keyof typeof limits, number>>, images = 1, deviceMs = 0) => ({
    tenant: `t${tenant}`,
    limits: { ...limits, ...more },
    images,
    deviceMs,
  });
  const used = (more: Partial<UsageRow> = {}): UsageRow => ({
    tenant: `t${tenant}`,
    key: "key1",
    model: "tiny",
    day: dayOf(Date.now()),
    requests: 1,
    images: 1,
    cachedImages: 0,
    deviceMs: 10,
    costMicros: 1,
    ...more,
  });
  const accountsOn = (link: OpenLink, options: { leaseMs?: number } = {}) =>
    new RedisAccounts({ link: link.link, clock: systemClock, log, ...options });
  const imagesOf = async (accounts: Accounts) => {
    const today = dayOf(Date.now());
    const rows = await accounts.usage({ tenant: `t${tenant}`, from: today, to: today });
    return rows.reduce((sum, { images }) => sum + images, 0);
  };

  beforeAll(async () => {
    redis = await startRedis();
    open = await Promise.all([openRedisLink(redis.url), openRedisLink(redis.url)]);
  });
  afterAll(async () => {
    for (const { link } of open) link.close();
    await redis.stop();
  });
  beforeEach(() => {
    tenant += 1;
  });

  it("decides as MemoryLimits does, over long histories that meet every limit", async () => {
    const random = seededRandom(1);
    const draw = (n: number) => Math.floor(random.next() * n);
    const caps = {
      requestsPerMinute: 999,
      imagesPerMinute: 999,
      concurrentRequests: 99,
      imagesPerMonth: 999,
      deviceMsPerMonth: 99_999,
    };
    const tight = [
      {},
      { requestsPerMinute: 50 },
      { imagesPerMinute: 90 },
      { concurrentRequests: 3 },
      { imagesPerMonth: 30 },
      { deviceMsPerMonth: 900 },
    ];
    const accounts = accountsOn(open[0]!);
    const memory = new MemoryLimits();
    const nowMs = Date.now();
    const met = new Set<string>();
    for (const [history, limit] of tight.entries()) {
      tenant += 1;
      const running: { here: Lease; there: Lease }[] = [];
      for (let i = 0; i < 150; i++) {
        const step = `history ${history}, step ${i}`;
        if (running.length > 0 && draw(2) === 0) {
          const [over] = running.splice(draw(running.length), 1);
          const row = draw(4) === 0 ? undefined : used({ images: draw(3), deviceMs: draw(80) });
          accounts.settle(over!.here, row);
          memory.settle(over!.there);
          if (row !== undefined) memory.use(row.tenant, row.day.slice(0, 7), row);
          continue;
        }
        const asked = entry({ ...caps, ...limit }, 1 + draw(3), draw(2) * draw(120));
        const [here, there] = [await accounts.enter(asked), memory.enter(asked, nowMs)];
        expect(here.granted, step).toBe(there.granted);
        if (here.granted && there.granted) running.push({ here: here.lease, there: there.lease });
        if (here.granted || there.granted) continue;
        expect(here.limit, step).toBe(there.limit);
        met.add(here.limit);
      }
    }
    expect([...met].sort()).toEqual([...LIMIT_NAMES].sort());
    await accounts.close();
  });

  it("frees the places of a gateway that is gone, and what it had put aside, once their leases ran out", async () => {
    const gone = accountsOn(open[0]!, { leaseMs: 600 });
    const limit = { concurrentRequests: 2, imagesPerMonth: 10 };
    granted(await gone.enter(entry(limit, 4)));
    granted(await gone.enter(entry(limit, 4)));
    await gone.close(); // renews nothing from here on, and settles nothing
    const other = accountsOn(open[1]!);
    expect(refused(await other.enter(entry(limit, 1))).limit).toBe("concurrent_requests");
    await sleep(700);
    granted(await other.enter(entry(limit, 10)));
  });

  it("holds the place of a request that takes longer than a lease", async () => {
    const accounts = accountsOn(open[0]!, { leaseMs: 300 });
    granted(await accounts.enter(entry({ concurrentRequests: 1 })));
    await sleep(900);
    refused(await accountsOn(open[1]!).enter(entry({ concurrentRequests: 1 })));
    await accounts.close();
  });

  it("never lets a quota be overspent by many at once", async () => {
    const gateways = open.map((link) => accountsOn(link));
    let delivered = 0;
    await Promise.all(
      Array.from({ length: 200 }, async (_, i) => {
        const accounts = gateways[i % 2]!;
        const entered = await accounts.enter(entry({ imagesPerMonth: 57 }, 3));
        if (!entered.granted) return;
        await sleep(i % 7);
        const images = i % 3; // of 3 that it might have
        delivered += images;
        accounts.settle(entered.lease, used({ images }));
      }),
    );
    await booked(...gateways);
    expect(delivered).toBeGreaterThan(0);
    expect(delivered).toBeLessThanOrEqual(57);
    expect(await imagesOf(gateways[0]!)).toBe(delivered);
  });

  it("books each request once though answers are lost, and in spite of a Redis that stands still", async () => {
    const [gateway, other] = open.map((link) => accountsOn(link));
    const asked = 300;
    for (let i = 0; i < asked; i++) {
      gateway!.settle(undefined, used());
      if (i === 50) redis.pause();
      if (i === 250) redis.resume();
      await sleep(3);
    }
    await booked(gateway!);
    expect(await imagesOf(gateway!)).toBe(asked);
    // The limits know as much as the book.
    expect(refused(await other!.enter(entry({ imagesPerMonth: asked }))).limit).toBe("images_per_month");
    granted(await other!.enter(entry({ imagesPerMonth: asked + 1 })));
  });

  it("books all of it where one of several at once does not reach Redis, as after a reset connection", async () => {
    const { link } = open[0]!;
    let calls = 0;
    const faulty = {
      key: link.key.bind(link),
      run: <T>(op: Parameters<typeof link.run<T>>[0]) =>
        ++calls % 3 === 1 ? Promise.reject(new StoreUnavailable("lost on its way")) : link.run(op),
    };
    const accounts = new RedisAccounts({ link: faulty, clock: systemClock, log });
    for (let i = 0; i < 6; i++) accounts.settle(undefined, used());
    await booked(accounts);
    expect(await imagesOf(accountsOn(open[0]!))).toBe(6);
    await accounts.close();
  });

  it("goes on by limits of each gateway's own while Redis is away, from what it knew, and says so to none", async () => {
    const [one, two] = open.map((link) => accountsOn(link));
    const limit = { concurrentRequests: 3, imagesPerMonth: 5 };
    const { lease } = granted(await one!.enter(entry(limit)));
    one!.settle(granted(await one!.enter(entry(limit, 3))).lease, used({ images: 3 }));
    await booked(one!);
    granted(await one!.enter({ ...entry(limit), images: 0 }));
    redis.pause();
    try {
      // One place and one image are taken here, three images used, and one more request runs.
      granted(await one!.enter(entry(limit)));
      expect(refused(await one!.enter(entry(limit))).limit).toBe("images_per_month");
      for (let i = 0; i < 3; i++) granted(await two!.enter(entry(limit)));
      expect(refused(await two!.enter(entry(limit))).limit).toBe("concurrent_requests");
      one!.settle(lease, used());
      expect(one!.unbooked).toBe(1);
    } finally {
      redis.resume();
    }
    await booked(one!);
    expect(await imagesOf(one!)).toBe(4);
  });

  it("goes on from what a Redis that lost everything has", async () => {
    const accounts = accountsOn(open[0]!);
    for (let i = 0; i < 5; i++) accounts.settle(undefined, used());
    await booked(accounts);
    await redis.client.flushall();
    for (let i = 0; i < 3; i++) accounts.settle(undefined, used());
    await booked(accounts);
    expect(await imagesOf(accounts)).toBe(3);
  });
});
