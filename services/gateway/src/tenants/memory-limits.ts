import { newId } from "@atelier/core";
import {
  type Entered,
  type Entry,
  type Lease,
  MINUTE_MS,
  type MonthUse,
  monthOf,
  nextMonthMs,
  type RateStanding,
} from "./accounts.ts";

/** A place becomes free with the next request that ends, which nobody can foretell. */
export const CONCURRENCY_RETRY_MS = 1_000;

interface KnownMonth extends MonthUse {
  readonly month: string;
}

interface Account {
  requests: Window;
  images: Window;
  readonly running: Map<string, Lease>;
  month: KnownMonth;
}

/** Counts from the first request after the one before ended. */
interface Window {
  readonly startMs: number;
  readonly count: number;
}

const NO_WINDOW: Window = { startMs: Number.NEGATIVE_INFINITY, count: 0 };

/**
 * Tenants' limits within one process. The same decisions as the script of RedisAccounts, which one contract test holds.
 * Grows with the tenants that have limits, which the configuration bounds.
 */
export class MemoryLimits {
  readonly #accounts = new Map<string, Account>();
  readonly #monthUse: (tenant: string, month: string) => MonthUse;

  /** @param monthUse what is booked of a month already, asked once for each tenant and month. */
  constructor(monthUse: (tenant: string, month: string) => MonthUse = () => ({ images: 0, deviceMs: 0 })) {
    this.#monthUse = monthUse;
  }

  enter({ tenant, limits, images, deviceMs }: Entry, nowMs: number): Entered {
    const account = this.#account(tenant, nowMs);
    const requests = current(account.requests, nowMs);
    const pictures = current(account.images, nowMs);
    const reserved = sum([...account.running.values()]);
    const fits = (used: number, more: number, limit: number | undefined) => limit === undefined || used + more <= limit;
    const { month } = account;

    const standing = (counted: 0 | 1) => ({
      requests: standingOf(requests, counted, limits.requestsPerMinute, nowMs),
      images: standingOf(pictures, counted * images, limits.imagesPerMinute, nowMs),
    });
    const refuse = (limit: Extract<Entered, { granted: false }>["limit"], retryAfterMs: number): Entered => ({
      granted: false,
      limit,
      retryAfterMs,
      standing: standing(0),
    });

    const monthLeftMs = nextMonthMs(nowMs) - nowMs;
    if (!fits(month.images + reserved.images, images, limits.imagesPerMonth))
      return refuse("images_per_month", monthLeftMs);
    // Without a prediction it asks for 0, and still needs something to be left.
    if (!fits(month.deviceMs + reserved.deviceMs, Math.max(deviceMs, 1), limits.deviceMsPerMonth)) {
      return refuse("device_seconds_per_month", monthLeftMs);
    }
    if (!fits(requests.count, 1, limits.requestsPerMinute))
      return refuse("requests_per_minute", leftMs(requests, nowMs));
    if (!fits(pictures.count, images, limits.imagesPerMinute))
      return refuse("images_per_minute", leftMs(pictures, nowMs));
    if (!fits(account.running.size, 1, limits.concurrentRequests))
      return refuse("concurrent_requests", CONCURRENCY_RETRY_MS);

    const lease: Lease = { tenant, id: newId("lease"), images, deviceMs };
    account.running.set(lease.id, lease);
    account.requests = { startMs: requests.startMs, count: requests.count + 1 };
    account.images = { startMs: pictures.startMs, count: pictures.count + images };
    return { granted: true, lease, standing: standing(1) };
  }

  /** A lease that was granted elsewhere counts here too. */
  adopt(lease: Lease, nowMs: number): void {
    this.#account(lease.tenant, nowMs).running.set(lease.id, lease);
  }

  /** What the month used, as whoever counts for all gateways says. */
  know(tenant: string, { images, deviceMs }: { images: number; deviceMs: number }, nowMs: number): void {
    const account = this.#account(tenant, nowMs);
    account.month = { month: account.month.month, images, deviceMs };
  }

  settle({ tenant, id }: Pick<Lease, "tenant" | "id">): void {
    this.#accounts.get(tenant)?.running.delete(id);
  }

  /** Adds to what the month has used; of another month it is no longer asked for. */
  use(tenant: string, month: string, { images, deviceMs }: { images: number; deviceMs: number }): void {
    const account = this.#accounts.get(tenant);
    if (account === undefined || account.month.month !== month) return;
    account.month = { month, images: account.month.images + images, deviceMs: account.month.deviceMs + deviceMs };
  }

  #account(tenant: string, nowMs: number): Account {
    const month = monthOf(nowMs);
    let account = this.#accounts.get(tenant);
    if (account?.month.month !== month) {
      const used = { month, ...this.#monthUse(tenant, month) };
      account = { requests: NO_WINDOW, images: NO_WINDOW, running: new Map(), ...account, month: used };
      this.#accounts.set(tenant, account);
    }
    return account;
  }
}

function current(window: Window, nowMs: number): Window {
  return nowMs - window.startMs < MINUTE_MS ? window : { startMs: nowMs, count: 0 };
}

function leftMs({ startMs }: Window, nowMs: number): number {
  return startMs + MINUTE_MS - nowMs;
}

function standingOf(
  window: Window,
  counted: number,
  limit: number | undefined,
  nowMs: number,
): RateStanding | undefined {
  if (limit === undefined) return undefined;
  return { limit, remaining: Math.max(0, limit - window.count - counted), resetMs: leftMs(window, nowMs) };
}

function sum(leases: readonly Lease[]): { images: number; deviceMs: number } {
  return leases.reduce((all, one) => ({ images: all.images + one.images, deviceMs: all.deviceMs + one.deviceMs }), {
    images: 0,
    deviceMs: 0,
  });
}
