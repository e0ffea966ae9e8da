import { setImmediate as settled } from "node:timers/promises";
import { ManualClock } from "@atelier/core";
import { createLogger, type Logger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { StoreUnavailable } from "../shared/shared-store.ts";
import { keysJson, type TestKey, testKey } from "../testing/keys.ts";
import { openDatabase } from "./database.ts";
import { TenantDirectory } from "./directory.ts";
import type { KeyStore } from "./key-store.ts";
import { sqliteKeyStore } from "./key-store-sqlite.ts";
import { type KeyRecord, readHoldings } from "./records.ts";

const silent = createLogger("test", "silent");

describe("TenantDirectory", () => {
  it("goes on asking for keys when the last of them is gone from the store", async () => {
    const { directory, store } = await known();
    expect(directory.keysRequired).toBe(false);
    const key = testKey();
    await store.addKey(recordOf(key));
    await directory.refresh();
    expect([directory.keysRequired, directory.keys().length]).toEqual([true, 1]);
    await store.deleteKey(key.id);
    await directory.refresh();
    expect([directory.keysRequired, directory.keys().length]).toEqual([true, 0]);
  });

  it("keeps the keys that it knew while the store is away, and says so once", async () => {
    const said: string[] = [];
    const note = (_: unknown, text?: string) => said.push(text ?? String(_));
    const log = { ...silent, error: note, info: note } as unknown as Logger;
    const { directory, store, away, clock } = await known({ log });
    const key = testKey();
    await store.addKey(recordOf(key));
    await directory.refresh();
    away.now = true;
    for (let i = 0; i < 3; i++) await pass(clock, 3_000);
    expect(directory.key(key.id)).toBeDefined();
    away.now = false;
    await pass(clock, 3_000);
    expect(said).toEqual(["keys could not be read again; those known before stay in force", "keys can be read again"]);
  });

  it("lets nobody administer without a key until the store was read, and asks for one once it has keys", async () => {
    const { directory, store, away, clock } = await known({ away: true });
    expect([directory.complete, directory.keysRequired, directory.anonymousAdmin]).toEqual([false, false, false]);
    await store.addKey(recordOf(testKey()));
    away.now = false;
    await pass(clock, 3_000);
    expect([directory.complete, directory.keysRequired]).toEqual([true, true]);
  });

  it("sees within a poll what another process changed, and tells its listeners of changes only", async () => {
    const { directory, store, clock } = await known();
    let told = 0;
    directory.onChange(() => {
      told += 1;
    });
    await pass(clock, 3_000);
    expect(told).toBe(0);
    await store.addKey(recordOf(testKey()));
    await pass(clock, 3_000);
    await pass(clock, 3_000);
    expect(told).toBe(1);
  });

  it("takes the file's word before the store's, for keys and for tenants", async () => {
    const key = testKey({ name: "of the file" });
    const file = readHoldings(keysJson([key], [{ id: "shop", requests_per_minute: 1 }]));
    const { directory, store } = await known({ file });
    await store.addKey(recordOf({ ...key, record: { ...key.record, name: "of the store" } }));
    await store.putTenant({ ...directory.tenant("shop"), requests_per_minute: 99 });
    await directory.refresh();
    expect(directory.key(key.id)).toMatchObject({ source: "file", record: { name: "of the file" } });
    expect(directory.tenant("shop").requests_per_minute).toBe(1);
    expect(directory.tenantSource("shop")).toBe("file");
  });

  it("outlives a disk that is full: a change is refused, and what is known stays", async () => {
    const { directory, store, database, clock } = await known();
    const key = testKey();
    await store.addKey(recordOf(key));
    await directory.refresh();
    database.exec("PRAGMA query_only = ON");
    await expect(store.addKey(recordOf(testKey()))).rejects.toThrow(StoreUnavailable);
    directory.noteUsed(key.id);
    await pass(clock, 30_000);
    expect(directory.key(key.id)).toBeDefined();
  });

  it("leaves out what is damaged in the store, and keeps the rest", async () => {
    const { directory, store, database } = await known();
    const key = testKey();
    await store.addKey(recordOf(key));
    database.exec("INSERT INTO keys VALUES ('half', '{\"id\":'), ('bare', '{}')");
    database.exec('INSERT INTO tenants VALUES (\'shop\', \'{"id":"shop","requests_per_minute":-5}\')');
    await directory.refresh();
    expect(directory.keys().map(({ record }) => record.id)).toEqual([key.id]);
    expect(directory.tenantIds()).toEqual(["default"]);
  });

  it("tells the store when keys were used, now and then, and keeps what it could not tell", async () => {
    const { directory, store, away, clock } = await known();
    directory.noteUsed("abcdefabcdef");
    away.now = true;
    await pass(clock, 15_000);
    expect((await directory.lastUsed()).get("abcdefabcdef")).toBe(0);
    away.now = false;
    await pass(clock, 15_000);
    expect(await store.lastUsed()).toEqual(new Map([["abcdefabcdef", 0]]));
  });
});

const recordOf = (key: TestKey): KeyRecord => readHoldings(keysJson([key])).keys[0]!;

async function known(
  given: { readonly log?: Logger; readonly away?: boolean; readonly file?: ReturnType<typeof readHoldings> } = {},
) {
  const clock = new ManualClock();
  const database = openDatabase(undefined);
  const store = sqliteKeyStore(database, silent);
  const away = { now: given.away ?? false };
  const throughFault: KeyStore = {
    ...store,
    load: () => (away.now ? Promise.reject(new StoreUnavailable("away")) : store.load()),
    lastUsed: () => (away.now ? Promise.reject(new StoreUnavailable("away")) : store.lastUsed()),
    noteUsed: (moments) => (away.now ? Promise.reject(new StoreUnavailable("away")) : store.noteUsed(moments)),
  };
  let file = given.file;
  const read = async () => {
    const once = file;
    file = undefined;
    return once;
  };
  const directory = new TenantDirectory({
    clock,
    log: given.log ?? silent,
    configured: given.file === undefined ? [] : [{ name: "file", read }],
    store: throughFault,
    anonymous: "all",
  });
  await directory.start();
  return { directory, store, away, clock, database };
}

/** Lets time go by, and what falls due in it be done. */
async function pass(clock: ManualClock, ms: number): Promise<void> {
  clock.advance(ms);
  for (let i = 0; i < 5; i++) await settled();
}
