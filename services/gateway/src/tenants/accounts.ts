/** What a tenant may use; undefined is no limit. */
export interface Limits {
  readonly requestsPerMinute: number | undefined;
  readonly imagesPerMinute: number | undefined;
  readonly concurrentRequests: number | undefined;
  readonly imagesPerMonth: number | undefined;
  readonly deviceMsPerMonth: number | undefined;
}

/** In the order in which a refusal names them: the longest wait first. */
export const LIMIT_NAMES = [
  "images_per_month",
  "device_seconds_per_month",
  "requests_per_minute",
  "images_per_minute",
  "concurrent_requests",
] as const;
export type LimitName = (typeof LIMIT_NAMES)[number];

/** A request at the door. */
export interface Entry {
  readonly tenant: string;
  readonly limits: Limits;
  readonly images: number;
  /** Predicted device milliseconds; 0 where nobody knows. */
  readonly deviceMs: number;
}

/** How a rate limit stands after a request was counted or refused. */
export interface RateStanding {
  readonly limit: number;
  readonly remaining: number;
  /** Milliseconds until all of it can be used again. */
  readonly resetMs: number;
}

export interface Standing {
  readonly requests?: RateStanding | undefined;
  readonly images?: RateStanding | undefined;
}

/** A request's place and what is put aside for it, until it is settled. */
export interface Lease {
  readonly tenant: string;
  readonly id: string;
  readonly images: number;
  readonly deviceMs: number;
}

export type Entered =
  | { readonly granted: true; readonly lease: Lease; readonly standing: Standing }
  | {
      readonly granted: false;
      readonly limit: LimitName;
      readonly retryAfterMs: number;
      readonly standing: Standing;
    };

export const USE_FIELDS = ["requests", "images", "cachedImages", "deviceMs", "costMicros"] as const;

/** What was used, in whole numbers. */
export interface Use {
  /** Those that were answered with pictures. */
  readonly requests: number;
  /** Pictures delivered, cached ones included. */
  readonly images: number;
  /** Those of them that nothing was made for. */
  readonly cachedImages: number;
  /** Milliseconds of a whole device. */
  readonly deviceMs: number;
  /** Millionths of the currency's unit. */
  readonly costMicros: number;
}

/** Use, and whose it was. */
export interface UsageRow extends Use {
  readonly tenant: string;
  /** "-" where no keys are configured. */
  readonly key: string;
  readonly model: string;
  /** UTC, as 2026-11-23. */
  readonly day: string;
}

export interface UsageQuery {
  readonly tenant: string;
  /** Days, both included. */
  readonly from: string;
  readonly to: string;
}

/** What a job of a tenant's used so far, in all: never less than what was said of it before. */
export interface JobTotal {
  readonly tenant: string;
  readonly jobId: string;
  /** "-" where no keys are configured. */
  readonly key: string;
  readonly model: string;
  readonly images: number;
  /** Whole milliseconds of a whole device. */
  readonly deviceMs: number;
  readonly pricePerDeviceHour: number;
}

export interface MonthUse {
  readonly images: number;
  readonly deviceMs: number;
}

/** Where tenants' limits are counted and their use is booked. */
export interface Accounts {
  /** Counts a request against every limit at once, or refuses it and counts nothing. Atomic among all gateways. */
  enter(entry: Entry): Promise<Entered>;
  /** The request is over: frees its place, and turns what was put aside into what was used. Once for each lease. */
  settle(lease: Lease | undefined, used: UsageRow | undefined): void;
  /**
   * Books, today, by how much each total is above the largest that was ever booked of its job, key and model: the same
   * again, or an older one, books nothing. Rejects with StoreUnavailable; some may be booked then.
   */
  bookTotals(totals: readonly JobTotal[]): Promise<void>;
  /** What is booked of this month. Rejects with StoreUnavailable. */
  month(tenant: string): Promise<MonthUse>;
  /** Rejects with StoreUnavailable. */
  usage(query: UsageQuery): Promise<readonly UsageRow[]>;
  /** Tenants that ever used anything. Rejects with StoreUnavailable. */
  tenants(): Promise<readonly string[]>;
  /** Requests that are answered and not booked yet. */
  readonly unbooked: number;
  /** Books what is still to be booked, while there is somewhere to book it. */
  close(): Promise<void>;
}

export const MINUTE_MS = 60_000;

/** "2026-11-23", in UTC. */
export function dayOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10);
}

/** "2026-11", in UTC. */
export function monthOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 7);
}

/** The first moment of the next calendar month in UTC, in milliseconds since the epoch. */
export function nextMonthMs(ms: number): number {
  const date = new Date(ms);
  return Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1, 1);
}
