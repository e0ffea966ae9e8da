import { ManualClock } from "@atelier/core";
import { createLogger, type Logger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { LOCAL_CALLER } from "../caller.ts";
import { KeyAdmin } from "./admin.ts";
import { openDatabase } from "./database.ts";
import { TenantDirectory } from "./directory.ts";
import { sqliteKeyStore } from "./key-store-sqlite.ts";
import { defaultSettings } from "./records.ts";

describe("the audit of keys and tenants", () => {
  it("has a line for every change, with who made it, and never a secret or a hash", async () => {
    const lines: string[] = [];
    const clock = new ManualClock();
    const silent = createLogger("test", "silent");
    const child = (bindings: object) => ({
      info: (what: object, action: string) => lines.push(JSON.stringify({ action, ...bindings, ...what })),
    });
    const log = { ...silent, level: "warn", child } as unknown as Logger;
    const store = sqliteKeyStore(openDatabase(undefined), silent);
    const directory = new TenantDirectory({ clock, log: silent, configured: [], store, anonymous: "all" });
    await directory.start();
    const admin = new KeyAdmin({ directory, store, clock, log });
    const by = { ...LOCAL_CALLER, keyId: "adminadminad", tenant: "ops" };
    const choices = {
      name: "a",
      tenant: "t",
      priority: "bulk",
      models: null,
      adapters: null,
      expires_at: null,
    } as const;

    const first = await admin.create({ ...choices, role: "admin" }, by);
    const second = await admin.create({ ...choices, role: "user" }, by);
    const rotated = await admin.rotate(second.record.id, { graceMs: 1_000 }, by);
    await admin.change(second.record.id, { name: "b" }, by);
    await admin.revoke(second.record.id, by);
    await admin.setTenant({ ...defaultSettings("t"), requests_per_minute: 9 }, by);

    const id = second.record.id;
    expect(lines.map((line) => JSON.parse(line))).toEqual([
      { action: "key created", key_id: first.record.id, tenant: "t", role: "admin", ...WHO },
      { action: "key created", key_id: id, tenant: "t", role: "user", ...WHO },
      { action: "key rotated", key_id: id, grace_ms: 1_000, ...WHO },
      { action: "key changed", key_id: id, changes: { name: "b" }, ...WHO },
      { action: "key revoked", key_id: id, ...WHO },
      { action: "tenant set", tenant: "t", settings: { ...defaultSettings("t"), requests_per_minute: 9 }, ...WHO },
    ]);
    const text = lines.join();
    for (const { record, secret } of [first, second, rotated]) {
      expect(text).not.toContain(secret);
      expect(text).not.toContain(record.hash.slice("sha256:".length));
    }
  });
});

const WHO = { audit: true, by_key: "adminadminad", by_tenant: "ops" };
