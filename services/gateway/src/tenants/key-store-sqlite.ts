import type { DatabaseSync } from "node:sqlite";
import type { Logger } from "@atelier/telemetry";
import { inDatabase } from "./database.ts";
import type { KeyStore } from "./key-store.ts";
import { readStoredKeys, readStoredTenants, storedText } from "./stored-records.ts";

const TABLES = `
  CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS tenants (id TEXT PRIMARY KEY, settings TEXT NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS key_uses (id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) STRICT;
`;

/** Keys and tenants in an embedded gateway's own database. Other processes' changes are seen by the directory's polls. */
export function sqliteKeyStore(database: DatabaseSync, log: Logger): KeyStore {
  database.exec(TABLES);
  const keys = database.prepare("SELECT record FROM keys ORDER BY rowid");
  const tenants = database.prepare("SELECT settings FROM tenants ORDER BY id");
  const add = database.prepare("INSERT INTO keys (id, record) VALUES (?, ?) ON CONFLICT DO NOTHING");
  const replace = database.prepare("UPDATE keys SET record = ? WHERE id = ? AND record = ?");
  const remove = database.prepare("DELETE FROM keys WHERE id = ?");
  const put = database.prepare("INSERT OR REPLACE INTO tenants (id, settings) VALUES (?, ?)");
  const uses = database.prepare("SELECT id, at_ms FROM key_uses");
  const use = database.prepare(
    "INSERT INTO key_uses (id, at_ms) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET at_ms = max(at_ms, excluded.at_ms)",
  );
  return {
    load: async () =>
      inDatabase(() => ({
        keys: readStoredKeys(
          keys.all().map(({ record }) => record as string),
          log,
        ),
        tenants: readStoredTenants(
          tenants.all().map(({ settings }) => settings as string),
          log,
        ),
      })),
    addKey: async (key) => inDatabase(() => add.run(key.id, storedText(key)).changes === 1),
    replaceKey: async (from, to) =>
      inDatabase(() => replace.run(storedText(to), from.id, storedText(from)).changes === 1),
    deleteKey: async (id) => inDatabase(() => remove.run(id).changes === 1),
    putTenant: async (tenant) => void inDatabase(() => put.run(tenant.id, storedText(tenant))),
    noteUsed: async (moments) =>
      inDatabase(() => {
        for (const [id, atMs] of moments) use.run(id, Math.floor(atMs));
      }),
    lastUsed: async () => inDatabase(() => new Map(uses.all().map(({ id, at_ms }) => [id as string, at_ms as number]))),
    onChange: () => () => {},
  };
}
