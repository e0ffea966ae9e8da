import { type Clock, ServingError } from "@atelier/core";
import type { Caller } from "../caller.ts";
import type { Served, TenantLimits, TenantTicket } from "../generations/ports.ts";
import type { CompleteRequest } from "../image-request.ts";
import {
  type Accounts,
  dayOf,
  type Entered,
  type LimitName,
  type Limits,
  type Standing,
  type UsageRow,
} from "./accounts.ts";
import { deviceMsOf } from "./device-time.ts";
import type { TenantDirectory } from "./directory.ts";
import type { KeyAuthenticator } from "./key-authenticator.ts";
import type { TenantSettings } from "./records.ts";
import { costMicros, priceFor, type Tariff, wasMade } from "./tariff.ts";

export interface TenantGateOptions {
  readonly directory: TenantDirectory;
  readonly authenticator: Pick<KeyAuthenticator, "lost">;
  readonly accounts: Accounts;
  readonly tariff: Tariff;
  /** Device milliseconds that a request would take; 0 where nobody knows. */
  readonly predictMs: (asked: CompleteRequest, caller: Caller) => number;
  readonly clock: Clock;
  readonly onRefusal?: ((limit: LimitName) => void) | undefined;
  /** Told of each request that was served, as it is booked. */
  readonly onUsed?: ((row: UsageRow, served: Served) => void) | undefined;
}

/** Keys expire without anybody saying so. */
const RECHECK_MS = 1_000;

/** Lets a tenant's requests in as far as its limits go, ends those whose key was revoked, and books what they used. */
export class TenantGate implements TenantLimits {
  readonly #options: TenantGateOptions;
  readonly #running = new Map<AbortController, Caller>();
  readonly #endWatch: () => void;
  #cancelRecheck: (() => void) | undefined;

  constructor(options: TenantGateOptions) {
    this.#options = options;
    this.#endWatch = options.directory.onChange(() => this.#recheck());
  }

  async enter(
    caller: Caller,
    asked: CompleteRequest,
    onStanding?: (standing: Standing) => void,
  ): Promise<TenantTicket> {
    const { directory, accounts } = this.#options;
    const settings = directory.tenant(caller.tenant);
    const limits = limitsOf(settings);
    checkFitsAtAll(asked, settings);
    const entered = isLimited(limits) ? await this.#enter(caller, asked, limits) : undefined;
    if (entered !== undefined) onStanding?.(entered.standing);
    if (entered?.granted === false) {
      this.#options.onRefusal?.(entered.limit);
      throw refusal(entered, settings);
    }

    const controller = new AbortController();
    this.#running.set(controller, caller);
    this.#recheckLater();
    let left = false;
    return {
      signal: controller.signal,
      leave: (served) => {
        if (left) return;
        left = true;
        this.#running.delete(controller);
        const used = served && this.#used(caller, settings, served);
        accounts.settle(entered?.lease, used);
        if (used !== undefined) this.#options.onUsed?.(used, served!);
      },
    };
  }

  close(): void {
    this.#endWatch();
    this.#cancelRecheck?.();
  }

  #enter(caller: Caller, asked: CompleteRequest, limits: Limits): Promise<Entered> {
    const { accounts, predictMs } = this.#options;
    const deviceMs = limits.deviceMsPerMonth === undefined ? 0 : Math.ceil(predictMs(asked, caller));
    return accounts.enter({ tenant: caller.tenant, limits, images: asked.numImages, deviceMs });
  }

  #used({ tenant, keyId }: Caller, settings: TenantSettings, served: Served): UsageRow {
    const { pictures, receipt } = served.generation;
    const deviceMs = wasMade(served) ? Math.round(deviceMsOf(receipt)) : 0;
    return {
      tenant,
      key: keyId ?? "-",
      model: receipt.model,
      day: dayOf(this.#options.clock.nowMs()),
      requests: 1,
      images: pictures.length,
      cachedImages: wasMade(served) ? 0 : pictures.length,
      deviceMs,
      costMicros: costMicros(deviceMs, priceFor(settings, this.#options.tariff)),
    };
  }

  #recheckLater(): void {
    this.#cancelRecheck ??= this.#options.clock.after(RECHECK_MS, () => {
      this.#cancelRecheck = undefined;
      this.#recheck();
      if (this.#running.size > 0) this.#recheckLater();
    });
  }

  #recheck(): void {
    for (const [controller, caller] of this.#running) {
      const lost = this.#options.authenticator.lost(caller);
      if (lost !== undefined) controller.abort(lost);
    }
  }
}

export function limitsOf(settings: TenantSettings): Limits {
  const seconds = settings.device_seconds_per_month;
  return {
    requestsPerMinute: settings.requests_per_minute ?? undefined,
    imagesPerMinute: settings.images_per_minute ?? undefined,
    concurrentRequests: settings.concurrent_requests ?? undefined,
    imagesPerMonth: settings.images_per_month ?? undefined,
    deviceMsPerMonth: seconds === null ? undefined : seconds * 1000,
  };
}

function isLimited(limits: Limits): boolean {
  return Object.values(limits).some((limit) => limit !== undefined);
}

/** What is more than a whole minute's or month's worth would be refused for ever, with a time to come back at. */
function checkFitsAtAll({ numImages }: CompleteRequest, settings: TenantSettings): void {
  for (const name of ["images_per_minute", "images_per_month"] as const) {
    const limit = settings[name];
    if (limit === null || numImages <= limit) continue;
    const message = `num_images is ${numImages}, but this tenant's ${name} is ${limit}: ask for fewer at once`;
    throw new ServingError("FORBIDDEN", message, { field: "num_images" });
  }
}

function refusal(
  { limit, retryAfterMs }: Extract<Entered, { granted: false }>,
  settings: TenantSettings,
): ServingError {
  const monthly = limit.endsWith("_per_month");
  const tail = monthly ? "; the next month begins at midnight UTC" : "";
  const message = `this tenant's ${limit} is ${settings[limit]}, and that is used up${tail}`;
  return new ServingError(monthly ? "QUOTA_EXCEEDED" : "RATE_LIMITED", message, { retryAfterMs });
}
