import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ManualClock } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { describeAccounts, granted, refused } from "./accounts.contract.ts";
import { openDatabase } from "./database.ts";
import { EmbeddedAccounts } from "./embedded-accounts.ts";
import { SqliteUsage } from "./sqlite-usage.ts";

const log = createLogger("test", "silent");
const START_MS = Date.UTC(2026, 10, 23, 12);

describeAccounts("EmbeddedAccounts", async () => {
  const clock = new ManualClock(START_MS);
  const database = openDatabase(undefined);
  const accounts = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(database) });
  return {
    accounts,
    elsewhere: accounts,
    passMinute: async () => clock.advance(60_000),
    nowMs: () => clock.nowMs(),
    stop: async () => database.close(),
  };
});

describe("EmbeddedAccounts", () => {
  const limits = {
    requestsPerMinute: 2,
    imagesPerMinute: undefined,
    concurrentRequests: undefined,
    imagesPerMonth: 5,
    deviceMsPerMonth: undefined,
  };
  const ask = (accounts: EmbeddedAccounts, images = 1) =>
    accounts.enter({ tenant: "shop", limits, images, deviceMs: 0 });
  const used = (images: number, day: string) => ({
    tenant: "shop",
    key: "-",
    model: "tiny",
    day,
    requests: 1,
    images,
    cachedImages: 0,
    deviceMs: 0,
    costMicros: 0,
  });

  it("begins a window with the first request after the one before", async () => {
    const clock = new ManualClock(START_MS);
    const accounts = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(openDatabase(undefined)) });
    granted(await ask(accounts));
    clock.advance(59_999);
    expect(granted(await ask(accounts)).standing.requests).toEqual({ limit: 2, remaining: 0, resetMs: 1 });
    expect(refused(await ask(accounts)).retryAfterMs).toBe(1);
    clock.advance(1);
    expect(granted(await ask(accounts)).standing.requests).toEqual({ limit: 2, remaining: 1, resetMs: 60_000 });
  });

  it("begins a quota anew with the calendar month in UTC", async () => {
    const clock = new ManualClock(Date.UTC(2026, 10, 30, 23, 59, 59));
    const accounts = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(openDatabase(undefined)) });
    accounts.settle(granted(await ask(accounts, 5)).lease, used(5, "2026-11-30"));
    expect(refused(await ask(accounts))).toMatchObject({ limit: "images_per_month", retryAfterMs: 1_000 });
    clock.advance(1_000);
    granted(await ask(accounts, 5));
  });

  it("keeps what a full disk does not take, and books it once when it can", async () => {
    const clock = new ManualClock(START_MS);
    const database = openDatabase(undefined);
    const accounts = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(database) });
    const query = { tenant: "shop", from: "2026-11-01", to: "2026-11-30" };
    database.exec("PRAGMA query_only = ON"); // refuses every write, as a full disk does
    for (let i = 0; i < 2; i++) accounts.settle(granted(await ask(accounts)).lease, used(1, "2026-11-23"));
    expect(accounts.unbooked).toBe(2);
    expect(await accounts.usage(query)).toEqual([]);
    database.exec("PRAGMA query_only = OFF");
    accounts.settle(undefined, used(1, "2026-11-23"));
    expect(accounts.unbooked).toBe(0);
    expect(await accounts.usage(query)).toEqual([{ ...used(3, "2026-11-23"), requests: 3 }]);
  });

  it("knows after a restart what was used, and what is left of the quota", async () => {
    const folder = mkdtempSync(join(tmpdir(), "atelier-usage-"));
    const clock = new ManualClock(START_MS);
    const first = openDatabase(folder);
    const before = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(first) });
    before.settle(granted(await ask(before, 4)).lease, used(4, "2026-11-23"));
    first.close();

    const second = openDatabase(folder);
    const after = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(second) });
    expect(await after.usage({ tenant: "shop", from: "2026-11-01", to: "2026-11-30" })).toEqual([
      used(4, "2026-11-23"),
    ]);
    expect(refused(await ask(after, 2)).limit).toBe("images_per_month");
    granted(await ask(after, 1));
    second.close();
    rmSync(folder, { recursive: true });
  });
});
