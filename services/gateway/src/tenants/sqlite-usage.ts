import type { DatabaseSync } from "node:sqlite";
import type { JobTotal, MonthUse, UsageQuery, UsageRow } from "./accounts.ts";
import { costMicros } from "./tariff.ts";

const TABLE = `
  CREATE TABLE IF NOT EXISTS usage (
    tenant TEXT NOT NULL, day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, images INTEGER NOT NULL, cached_images INTEGER NOT NULL,
    device_ms INTEGER NOT NULL, cost_micros INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, key, model)
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS job_totals (
    tenant TEXT NOT NULL, job TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    images INTEGER NOT NULL, device_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, job, key, model)
  ) STRICT, WITHOUT ROWID;
`;

const NOTHING: MonthUse = { images: 0, deviceMs: 0 };

/** An embedded gateway's book of use. */
export class SqliteUsage {
  readonly #database: DatabaseSync;
  readonly #add;
  readonly #total;
  readonly #raise;
  readonly #read;
  readonly #month;
  readonly #tenants;

  constructor(database: DatabaseSync) {
    this.#database = database;
    database.exec(TABLE);
    this.#total = database.prepare(
      "SELECT images, device_ms AS deviceMs FROM job_totals WHERE tenant = ? AND job = ? AND key = ? AND model = ?",
    );
    this.#raise = database.prepare(`
      INSERT INTO job_totals VALUES (:tenant, :jobId, :key, :model, :images, :deviceMs)
      ON CONFLICT DO UPDATE SET images = max(images, excluded.images), device_ms = max(device_ms, excluded.device_ms)`);
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

  /** Books what each is above what was known of it; gives that, in order. All of it, or nothing. */
  addTotals(totals: readonly JobTotal[], day: string): readonly MonthUse[] {
    this.#database.exec("BEGIN IMMEDIATE");
    try {
      const added = totals.map((total) => this.#addTotal(total, day));
      this.#database.exec("COMMIT");
      return added;
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec("ROLLBACK");
      throw error;
    }
  }

  read({ tenant, from, to }: UsageQuery): readonly UsageRow[] {
    return this.#read.all({ tenant, from, to }).map((row) => ({ ...row }) as unknown as UsageRow);
  }

  month(tenant: string, month: string): MonthUse {
    const { images, deviceMs } = this.#month.get(tenant, month) as { images: number; deviceMs: number };
    return { images, deviceMs };
  }

  tenants(): readonly string[] {
    return this.#tenants.all().map(({ tenant }) => tenant as string);
  }

  #addTotal({ pricePerDeviceHour, ...total }: JobTotal, day: string): MonthUse {
    const { tenant, jobId, key, model } = total;
    const known = (this.#total.get(tenant, jobId, key, model) as unknown as MonthUse | undefined) ?? NOTHING;
    const images = Math.max(0, total.images - known.images);
    const deviceMs = Math.max(0, total.deviceMs - known.deviceMs);
    if (images === 0 && deviceMs === 0) return NOTHING;
    this.#raise.run(total);
    const cost = costMicros(deviceMs, pricePerDeviceHour);
    this.add({ tenant, day, key, model, requests: 0, images, cachedImages: 0, deviceMs, costMicros: cost });
    return { images, deviceMs };
  }
}
