import type { DatabaseSync } from "node:sqlite";
import type { UsageQuery, UsageRow } from "./accounts.ts";

const TABLE = `
  CREATE TABLE IF NOT EXISTS usage (
    tenant TEXT NOT NULL, day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, images INTEGER NOT NULL, cached_images INTEGER NOT NULL,
    device_ms INTEGER NOT NULL, cost_micros INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, key, model)
  ) STRICT, WITHOUT ROWID;
`;

/** An embedded gateway's book of use. */
export class SqliteUsage {
  readonly #add;
  readonly #read;
  readonly #month;
  readonly #tenants;

  constructor(database: DatabaseSync) {
    database.exec(TABLE);
    this.#add = database.prepare(`
      INSERT INTO usage VALUES (:tenant, :day, :key, :model, :requests, :images, :cachedImages, :deviceMs, :costMicros)
      ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, images = images + excluded.images,
        cached_images = cached_images + excluded.cached_images, device_ms = device_ms + excluded.device_ms,
        cost_micros = cost_micros + excluded.cost_micros`);
    this.#read = database.prepare(`
      SELECT tenant, day, key, model, requests, images, cached_images AS cachedImages, device_ms AS deviceMs,
        cost_micros AS costMicros
      FROM usage WHERE tenant = :tenant AND day BETWEEN :from AND :to ORDER BY day, key, model`);
    this.#month = database.prepare(`
      SELECT coalesce(sum(images), 0) AS images, coalesce(sum(device_ms), 0) AS deviceMs
      FROM usage WHERE tenant = ? AND substr(day, 1, 7) = ?`);
    this.#tenants = database.prepare("SELECT DISTINCT tenant FROM usage ORDER BY tenant");
  }

  add(row: UsageRow): void {
    this.#add.run({ ...row });
  }

  read({ tenant, from, to }: UsageQuery): readonly UsageRow[] {
    return this.#read.all({ tenant, from, to }).map((row) => ({ ...row }) as unknown as UsageRow);
  }

  month(tenant: string, month: string): { images: number; deviceMs: number } {
    const { images, deviceMs } = this.#month.get(tenant, month) as { images: number; deviceMs: number };
    return { images, deviceMs };
  }

  tenants(): readonly string[] {
    return this.#tenants.all().map(({ tenant }) => tenant as string);
  }
}
