import type { Clock } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import { StoreUnavailable } from "../shared/shared-store.ts";
import {
  type Accounts,
  dayOf,
  type Entered,
  type Entry,
  type JobTotal,
  type Lease,
  type MonthUse,
  monthOf,
  type UsageQuery,
  type UsageRow,
} from "./accounts.ts";
import { inDatabase } from "./database.ts";
import { MemoryLimits } from "./memory-limits.ts";
import type { SqliteUsage } from "./sqlite-usage.ts";
import { addUse } from "./usage-report.ts";

export interface EmbeddedAccountsOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly book: SqliteUsage;
}

/** The accounts of a gateway that shares with no other: limits in memory, use in its own database. */
export class EmbeddedAccounts implements Accounts {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #book: SqliteUsage;
  readonly #limits: MemoryLimits;
  /** What the database did not take, as on a full disk, added up by whose it is: tried again with whatever comes next. */
  readonly #unbooked = new Map<string, UsageRow>();
  #failing = false;

  constructor({ clock, log, book }: EmbeddedAccountsOptions) {
    this.#clock = clock;
    this.#log = log;
    this.#book = book;
    this.#limits = new MemoryLimits((tenant, month) => book.month(tenant, month));
  }

  async enter(entry: Entry): Promise<Entered> {
    return this.#limits.enter(entry, this.#clock.nowMs());
  }

  settle(lease: Lease | undefined, used: UsageRow | undefined): void {
    if (lease !== undefined) this.#limits.settle(lease);
    if (used === undefined) return;
    this.#limits.use(used.tenant, used.day.slice(0, 7), used);
    const { tenant, day, key, model } = used;
    const of = JSON.stringify([tenant, day, key, model]);
    this.#unbooked.set(of, { ...used, ...addUse(this.#unbooked.get(of), used) });
    this.#bookAll();
  }

  get unbooked(): number {
    return [...this.#unbooked.values()].reduce((sum, { requests }) => sum + requests, 0);
  }

  async bookTotals(totals: readonly JobTotal[]): Promise<void> {
    const day = dayOf(this.#clock.nowMs());
    const added = inDatabase(() => this.#book.addTotals(totals, day));
    for (const [i, { tenant }] of totals.entries()) this.#limits.use(tenant, day.slice(0, 7), added[i]!);
  }

  async month(tenant: string): Promise<MonthUse> {
    return inDatabase(() => this.#book.month(tenant, monthOf(this.#clock.nowMs())));
  }

  async usage(query: UsageQuery): Promise<readonly UsageRow[]> {
    return inDatabase(() => this.#book.read(query));
  }

  async tenants(): Promise<readonly string[]> {
    return inDatabase(() => this.#book.tenants());
  }

  async close(): Promise<void> {
    this.#bookAll();
  }

  #bookAll(): void {
    try {
      for (const [of, row] of this.#unbooked) {
        inDatabase(() => this.#book.add(row));
        this.#unbooked.delete(of);
      }
      if (this.#failing) this.#log.info("use can be booked again");
      this.#failing = false;
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
      if (!this.#failing) this.#log.error({ err: error }, "use cannot be booked; it is kept in memory until it can");
      this.#failing = true;
    }
  }
}
