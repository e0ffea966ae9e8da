import type { Clock } from "@atelier/core";
import type { Accounts, Entered, Entry, Lease, UsageQuery, UsageRow } from "./accounts.ts";
import { MemoryLimits } from "./memory-limits.ts";
import type { SqliteUsage } from "./sqlite-usage.ts";

/** The accounts of a gateway that shares with no other: limits in memory, use in its own database. */
export class EmbeddedAccounts implements Accounts {
  readonly #clock: Clock;
  readonly #book: SqliteUsage;
  readonly #limits: MemoryLimits;

  constructor({ clock, book }: { clock: Clock; book: SqliteUsage }) {
    this.#clock = clock;
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
    this.#book.add(used);
  }

  get unbooked(): number {
    return 0;
  }

  async usage(query: UsageQuery): Promise<readonly UsageRow[]> {
    return this.#book.read(query);
  }

  async tenants(): Promise<readonly string[]> {
    return this.#book.tenants();
  }

  async close(): Promise<void> {}
}
