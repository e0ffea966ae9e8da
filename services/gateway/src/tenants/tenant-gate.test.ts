import { ManualClock, ServingError } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import type { Caller } from "../caller.ts";
import type { CacheOutcome, Served } from "../generations/ports.ts";
import type { CompleteRequest } from "../image-request.ts";
import { bearer, keysJson, type TestKey, testKey } from "../testing/keys.ts";
import type { Standing } from "./accounts.ts";
import { openDatabase } from "./database.ts";
import { TenantDirectory } from "./directory.ts";
import { EmbeddedAccounts } from "./embedded-accounts.ts";
import { KeyAuthenticator } from "./key-authenticator.ts";
import { sqliteKeyStore } from "./key-store-sqlite.ts";
import { readHoldings } from "./records.ts";
import { SqliteUsage } from "./sqlite-usage.ts";
import { TenantGate } from "./tenant-gate.ts";

const START_MS = Date.UTC(2026, 10, 23, 12);

describe("TenantGate", () => {
  it("tells how the rate limits stand, of a request that is let in and of one that is not", async () => {
    const { gate, caller } = await tenancy({ tenants: [{ id: "shop", requests_per_minute: 1 }] });
    const told: Standing[] = [];
    await gate.enter(caller, request(), (standing) => told.push(standing));
    const refused = await gate.enter(caller, request(), (standing) => told.push(standing)).catch((error) => error);
    expect(refused).toMatchObject({ code: "RATE_LIMITED", retryAfterMs: 60_000 });
    expect(told.map(({ requests }) => requests?.remaining)).toEqual([0, 0]);
  });

  it("asks nobody where a tenant has no limits", async () => {
    const { gate, caller, accounts } = await tenancy({});
    accounts.enter = () => Promise.reject(new Error("asked"));
    await expect(gate.enter(caller, request())).resolves.toBeDefined();
  });

  it("ends what runs when its key expires", async () => {
    const { gate, caller, clock } = await tenancy({ key: { expires_at: new Date(START_MS + 5_000).toISOString() } });
    const { signal } = await gate.enter(caller, request());
    clock.advance(4_900);
    expect(signal.aborted).toBe(false);
    clock.advance(1_100);
    expect(signal.reason).toMatchObject({ code: "UNAUTHENTICATED", detail: expect.stringContaining("expired while") });
  });

  it("ends what runs when its key is gone, and nothing of other keys", async () => {
    const other = testKey({ tenant: "shop" });
    const { gate, caller, authenticator, replaceKeys, directory } = await tenancy({ others: [other] });
    const { signal } = await gate.enter(caller, request());
    const kept = await gate.enter(await authenticator.authenticate(bearer(other), "user"), request());
    replaceKeys([other]);
    await directory.refresh();
    expect(signal.reason).toBeInstanceOf(ServingError);
    expect(signal.reason).toMatchObject({ code: "UNAUTHENTICATED" });
    expect(kept.signal.aborted).toBe(false);
  });

  it.each([
    ["miss", { images: 2, cachedImages: 0, deviceMs: 90, costMicros: 90 }],
    ["approximate", { images: 2, cachedImages: 0, deviceMs: 90, costMicros: 90 }],
    ["bypass", { images: 2, cachedImages: 0, deviceMs: 90, costMicros: 90 }],
    ["hit", { images: 2, cachedImages: 2, deviceMs: 0, costMicros: 0 }],
    ["shared", { images: 2, cachedImages: 2, deviceMs: 0, costMicros: 0 }],
  ] as const)("books what a %s used, once", async (outcome, use) => {
    const { gate, caller, accounts, key } = await tenancy({});
    const ticket = await gate.enter(caller, request());
    ticket.leave(served(outcome));
    ticket.leave(served(outcome));
    expect(await accounts.usage({ tenant: "shop", from: "2026-11-01", to: "2026-11-30" })).toEqual([
      { tenant: "shop", key: key.id, model: "tiny", day: "2026-11-23", requests: 1, ...use },
    ]);
  });

  it("books nothing of what failed, and frees its place", async () => {
    const { gate, caller, accounts } = await tenancy({ tenants: [{ id: "shop", concurrent_requests: 1 }] });
    for (let i = 0; i < 3; i++) (await gate.enter(caller, request())).leave(undefined);
    expect(await accounts.usage({ tenant: "shop", from: "2026-11-01", to: "2026-11-30" })).toEqual([]);
  });

  it("takes a tenant's own price before the gateway's", async () => {
    const { gate, caller, accounts } = await tenancy({ tenants: [{ id: "shop", price_per_device_hour: 36 }] });
    (await gate.enter(caller, request())).leave(served("miss"));
    const [row] = await accounts.usage({ tenant: "shop", from: "2026-11-23", to: "2026-11-23" });
    expect(row!.costMicros).toBe(900);
  });

  it("puts aside the device seconds that are predicted", async () => {
    const { gate, caller } = await tenancy({ tenants: [{ id: "shop", device_seconds_per_month: 1 }], predictMs: 400 });
    await gate.enter(caller, request());
    const second = await gate.enter(caller, request());
    await expect(gate.enter(caller, request())).rejects.toMatchObject({ code: "QUOTA_EXCEEDED" });
    second.leave(undefined);
    await expect(gate.enter(caller, request())).resolves.toBeDefined();
  });
});

interface Given {
  readonly key?: Readonly<Record<string, unknown>>;
  readonly others?: readonly TestKey[];
  readonly tenants?: readonly Readonly<Record<string, unknown>>[];
  readonly predictMs?: number;
}

async function tenancy({ key: fields = {}, others = [], tenants = [], predictMs = 0 }: Given) {
  const clock = new ManualClock(START_MS);
  const log = createLogger("test", "silent");
  const key = testKey({ tenant: "shop", ...fields });
  let keys: readonly TestKey[] | undefined = [key, ...others];
  const configured = {
    name: "file" as const,
    read: async () => {
      const holdings = keys && readHoldings(keysJson(keys, tenants));
      keys = undefined;
      return holdings;
    },
  };
  const database = openDatabase(undefined);
  const store = sqliteKeyStore(database, log);
  const directory = new TenantDirectory({ clock, log, configured: [configured], store, anonymous: "all" });
  await directory.start();
  const authenticator = new KeyAuthenticator({ directory, clock });
  const accounts = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(database) });
  const gate = new TenantGate({
    directory,
    authenticator,
    accounts,
    tariff: { pricePerDeviceHour: 3.6, currency: "EUR" },
    predictMs: () => predictMs,
    clock,
  });
  const caller: Caller = await authenticator.authenticate(bearer(key), "user");
  const replaceKeys = (next: readonly TestKey[]) => {
    keys = next;
  };
  return { gate, caller, accounts, authenticator, clock, directory, key, replaceKeys };
}

const request = () => ({ numImages: 2, model: "tiny" }) as CompleteRequest;

function served(outcome: CacheOutcome): Served {
  const times = { queueMs: 1_000, textEncodeMs: 10, denoiseMs: 60, imageDecodeMs: 20 };
  const generation = { pictures: [{}, {}], receipt: { model: "tiny", times } };
  return { request: request(), generation, outcome } as unknown as Served;
}
