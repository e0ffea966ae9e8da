import { type Clock, newId } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import { StoreUnavailable } from "../shared/shared-store.ts";
import { AccountBook, type AccountsLink, accountKeys } from "./account-book.ts";
import { BOOK_TOTALS, ENTER, RENEW } from "./account-scripts.ts";
import {
  type Accounts,
  dayOf,
  type Entered,
  type Entry,
  type JobTotal,
  type Lease,
  LIMIT_NAMES,
  MINUTE_MS,
  type MonthUse,
  monthOf,
  nextMonthMs,
  type RateStanding,
  type UsageQuery,
  type UsageRow,
} from "./accounts.ts";
import { CONCURRENCY_RETRY_MS, MemoryLimits } from "./memory-limits.ts";
import { costMicros } from "./tariff.ts";
import { addUse, NO_USE } from "./usage-report.ts";

export interface RedisAccountsOptions {
  readonly link: AccountsLink;
  readonly clock: Clock;
  readonly log: Logger;
  /** How long a place outlives a gateway that is gone. */
  readonly leaseMs?: number;
  /** What "a minute" is in rate limits: tests have less time. */
  readonly windowMs?: number;
}

const LEASE_MS = 10_000;
const RENEWALS_PER_LEASE = 3;
const DAY_MS = 86_400_000;
/** Long after jobs are deleted by themselves: a total told again once it is forgotten would be booked again. */
const TOTALS_KEPT_S = 400 * 86_400;

/**
 * The accounts of several gateways, in Redis. A request's place is a lease that its gateway renews: those of a gateway
 * that crashed end by themselves. While Redis is away each gateway goes by limits of its own, and keeps what is to be
 * booked.
 */
export class RedisAccounts implements Accounts {
  readonly #link: AccountsLink;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #leaseMs: number;
  readonly #windowMs: number;
  readonly #gateway = newId("gateway");
  readonly #running = new Map<string, Lease>();
  readonly #books = new Map<string, AccountBook>();
  readonly #named = new Set<string>();
  /** Mirrors what runs here, so that limits of its own do not begin from nothing. */
  readonly #own = new MemoryLimits();
  #cancelRenewal: (() => void) | undefined;

  constructor({ link, clock, log, leaseMs = LEASE_MS, windowMs = MINUTE_MS }: RedisAccountsOptions) {
    this.#link = link;
    this.#clock = clock;
    this.#log = log;
    this.#leaseMs = leaseMs;
    this.#windowMs = windowMs;
  }

  async enter(entry: Entry): Promise<Entered> {
    const entered = await this.#enterTogether(entry).catch((error: unknown) => {
      if (!(error instanceof StoreUnavailable)) throw error;
      return this.#own.enter(entry, this.#clock.nowMs());
    });
    if (entered.granted) {
      this.#running.set(entered.lease.id, entered.lease);
      this.#renewLater();
    }
    return entered;
  }

  settle(lease: Lease | undefined, used: UsageRow | undefined): void {
    if (lease !== undefined) {
      this.#running.delete(lease.id);
      this.#own.settle(lease);
    }
    if (used !== undefined) this.#own.use(used.tenant, used.day.slice(0, 7), used);
    const tenant = lease?.tenant ?? used?.tenant;
    if (tenant !== undefined) this.#book(tenant).add(lease && textOf(lease), used);
  }

  get unbooked(): number {
    return [...this.#books.values()].reduce((sum, book) => sum + book.unbooked, 0);
  }

  async bookTotals(totals: readonly JobTotal[]): Promise<void> {
    const nowMs = this.#clock.nowMs();
    const jobs = Map.groupBy(totals, ({ tenant, jobId }) => `${tenant}\n${jobId}`);
    await Promise.all(
      [...jobs.values()].map(async (ofJob) => {
        const { tenant, jobId } = ofJob[0]!;
        const { account, leases, totalsOf, usageOn } = accountKeys(this.#link, tenant);
        const keys = [account, leases, totalsOf(jobId), usageOn(dayOf(nowMs))];
        const args = [monthOf(nowMs), TOTALS_KEPT_S, ...ofJob.flatMap(argumentsOf)];
        const answer = await this.#link.run((client) => BOOK_TOTALS.run(client, keys, args));
        const [images, deviceMs] = answer as [number, number];
        this.#own.use(tenant, monthOf(nowMs), { images, deviceMs });
        this.#name(tenant);
      }),
    );
  }

  async month(tenant: string): Promise<MonthUse> {
    const { account } = accountKeys(this.#link, tenant);
    const [month, images, deviceMs] = await this.#link.run((client) => client.hmget(account, "m", "mi", "md"));
    if (month !== monthOf(this.#clock.nowMs())) return { images: 0, deviceMs: 0 };
    return { images: Number(images), deviceMs: Number(deviceMs) };
  }

  async usage({ tenant, from, to }: UsageQuery): Promise<readonly UsageRow[]> {
    const days = daysBetween(from, to);
    const { usageOn } = accountKeys(this.#link, tenant);
    const hashes = await Promise.all(days.map((day) => this.#link.run((client) => client.hgetall(usageOn(day)))));
    return hashes.flatMap((hash, i) => rowsOf(hash, { tenant, day: days[i]! }));
  }

  async tenants(): Promise<readonly string[]> {
    const known = await this.#link.run((client) => client.smembers(this.#tenantsKey()));
    return known.sort();
  }

  async close(): Promise<void> {
    this.#cancelRenewal?.();
    await Promise.all([...this.#books.values()].map((book) => book.close()));
  }

  async #enterTogether({ tenant, limits, images, deviceMs }: Entry): Promise<Entered> {
    const nowMs = this.#clock.nowMs();
    const lease: Lease = { tenant, id: newId("lease"), images, deviceMs };
    const { account, leases } = accountKeys(this.#link, tenant);
    const caps = [
      limits.imagesPerMonth,
      limits.deviceMsPerMonth,
      limits.requestsPerMinute,
      limits.imagesPerMinute,
      limits.concurrentRequests,
    ].map((cap) => cap ?? -1);
    const args = [textOf(lease), images, deviceMs, monthOf(nowMs), this.#leaseMs, this.#windowMs, ...caps];
    const answer = await this.#link.run((client) => ENTER.run(client, [account, leases], args));
    const [met, requests, requestsLeftMs, pictures, imagesLeftMs, monthImages, monthDeviceMs] = answer as number[];

    this.#own.know(tenant, { images: monthImages!, deviceMs: monthDeviceMs! }, nowMs);
    const standing = {
      requests: standingOf(limits.requestsPerMinute, requests!, requestsLeftMs!),
      images: standingOf(limits.imagesPerMinute, pictures!, imagesLeftMs!),
    };
    if (met === 0) {
      this.#own.adopt(lease, nowMs);
      return { granted: true, lease, standing };
    }
    const limit = LIMIT_NAMES[met! - 1]!;
    const monthLeftMs = nextMonthMs(nowMs) - nowMs;
    const retryAfterMs = [monthLeftMs, monthLeftMs, requestsLeftMs!, imagesLeftMs!, CONCURRENCY_RETRY_MS][met! - 1]!;
    return { granted: false, limit, retryAfterMs, standing };
  }

  #book(tenant: string): AccountBook {
    let book = this.#books.get(tenant);
    if (book === undefined) {
      book = new AccountBook({ link: this.#link, clock: this.#clock, log: this.#log, tenant, gateway: this.#gateway });
      this.#books.set(tenant, book);
    }
    this.#name(tenant);
    return book;
  }

  /** Remembers that the tenant used something; until Redis knows it, with every request again. */
  #name(tenant: string): void {
    if (this.#named.has(tenant)) return;
    this.#link
      .run((client) => client.sadd(this.#tenantsKey(), tenant))
      .then(() => this.#named.add(tenant))
      .catch((error: unknown) => {
        if (!(error instanceof StoreUnavailable)) throw error;
      });
  }

  #tenantsKey(): string {
    return this.#link.key("tenants-with-usage");
  }

  #renewLater(): void {
    this.#cancelRenewal ??= this.#clock.after(this.#leaseMs / RENEWALS_PER_LEASE, () => {
      this.#cancelRenewal = undefined;
      this.#renew();
      if (this.#running.size > 0) this.#renewLater();
    });
  }

  /** Those too that entered while Redis was away: it learns of them here. */
  #renew(): void {
    const byTenant = Map.groupBy(this.#running.values(), ({ tenant }) => tenant);
    for (const [tenant, running] of byTenant) {
      const { account, leases } = accountKeys(this.#link, tenant);
      this.#link
        .run((client) => RENEW.run(client, [account, leases], [this.#leaseMs, ...running.map(textOf)]))
        .catch((error: unknown) => {
          if (!(error instanceof StoreUnavailable)) throw error; // the next renewal mends it
        });
    }
  }
}

function argumentsOf({ key, model, images, deviceMs, pricePerDeviceHour }: JobTotal): readonly (string | number)[] {
  return [`${key}\t${model}\t`, images, deviceMs, costMicros(1_000_000_000, pricePerDeviceHour) / 1e9];
}

function textOf({ id, images, deviceMs }: Lease): string {
  return `${id}|${images}|${deviceMs}`;
}

function standingOf(limit: number | undefined, counted: number, resetMs: number): RateStanding | undefined {
  return limit === undefined ? undefined : { limit, remaining: Math.max(0, limit - counted), resetMs };
}

function daysBetween(from: string, to: string): readonly string[] {
  const days = (Date.parse(to) - Date.parse(from)) / DAY_MS + 1;
  return Array.from({ length: days }, (_, i) => dayOf(Date.parse(from) + i * DAY_MS));
}

function rowsOf(hash: Readonly<Record<string, string>>, of: { tenant: string; day: string }): readonly UsageRow[] {
  const rows = new Map<string, UsageRow>();
  for (const [name, value] of Object.entries(hash)) {
    const [key = "", model = "", field = ""] = name.split("\t");
    const amount = { ...NO_USE, [field]: Number(value) };
    const id = JSON.stringify([key, model]);
    rows.set(id, { ...of, key, model, ...addUse(rows.get(id), amount) });
  }
  return [...rows.values()].sort((a, b) => (`${a.key}\t${a.model}` < `${b.key}\t${b.model}` ? -1 : 1));
}
