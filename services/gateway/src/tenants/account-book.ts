import { type Clock, invariant } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import type { RedisLink } from "../shared/redis-link.ts";
import { StoreUnavailable } from "../shared/shared-store.ts";
import { BOOK } from "./account-scripts.ts";
import { USE_FIELDS, type UsageRow } from "./accounts.ts";
import { addUse } from "./usage-report.ts";

/** What is still to be told of one tenant, added up: it grows with keys, models and days, not with requests. */
interface Batch {
  readonly leases: string[];
  readonly rows: Map<string, UsageRow>;
}

interface NumberedBatch extends Batch {
  readonly number: number;
}

/** As much of it as accounts need. */
export type AccountsLink = Pick<RedisLink, "run" | "key">;

export interface AccountBookOptions {
  readonly link: AccountsLink;
  readonly clock: Clock;
  readonly log: Logger;
  readonly tenant: string;
  /** Names this process, and never another. */
  readonly gateway: string;
}

/** Batches on their way at once; what comes meanwhile is added up. */
const UNDER_WAY_MAX = 64;
/** Leases end by themselves soon after; of use nothing is left out. */
const LEASES_KEPT_MAX = 1_000;
const RETRY_MS = 1_000;

/**
 * Tells Redis, in order and each thing once, what a tenant's requests used. A batch whose answer is lost is sent again
 * under its number, and Redis knows whether it has it. While Redis is away it adds up what is to be told.
 */
export class AccountBook {
  readonly #options: AccountBookOptions;
  #open: Batch = emptyBatch();
  #sent: NumberedBatch[] = [];
  #lastNumber = 0;
  #underWay = 0;
  /** Something was not answered: nothing new is sent until all that was sent is known to be booked. */
  #stalled = false;
  #cancelRetry: (() => void) | undefined;
  #closed = false;
  #idle: (() => void)[] = [];

  constructor(options: AccountBookOptions) {
    this.#options = options;
  }

  /** Requests that are answered and not booked. */
  get unbooked(): number {
    const rows = [this.#open, ...this.#sent].flatMap((batch) => [...batch.rows.values()]);
    return rows.reduce((sum, { requests }) => sum + requests, 0);
  }

  add(lease: string | undefined, used: UsageRow | undefined): void {
    const { leases, rows } = this.#open;
    if (lease !== undefined && leases.length < LEASES_KEPT_MAX) leases.push(lease);
    if (used !== undefined) {
      const key = JSON.stringify([used.day, used.key, used.model]);
      rows.set(key, { ...used, ...addUse(rows.get(key), used) });
    }
    this.#send();
  }

  /** Resolves when all is booked, or after one try where Redis is away. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#cancelRetry?.();
    if (this.#stalled && this.#underWay === 0) await this.#catchUp();
    if (this.#underWay > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
    const { log, tenant } = this.#options;
    if (this.unbooked > 0) log.error({ tenant, requests: this.unbooked }, "use was not booked: Redis is away");
  }

  /** At once where it can, so that on one connection it comes before whatever the caller asks next. */
  #send(): void {
    if (this.#stalled || this.#underWay >= UNDER_WAY_MAX || isEmpty(this.#open)) return;
    const batch = { number: ++this.#lastNumber, ...this.#open };
    this.#open = emptyBatch();
    this.#sent.push(batch);
    this.#underWay += 1;
    void this.#book(batch, "")
      .then((answer) => {
        if (answer === "gap") this.#stalled = true;
        else this.#sent = this.#sent.filter((other) => other !== batch);
      })
      .catch((error: unknown) => {
        if (!(error instanceof StoreUnavailable)) throw error;
        this.#stalled = true;
      })
      .finally(() => {
        this.#underWay -= 1;
        if (!this.#stalled) this.#send();
        else if (this.#underWay === 0) this.#retryLater();
        if (this.#underWay === 0) for (const done of this.#idle.splice(0)) done();
      });
  }

  #retryLater(): void {
    if (this.#closed) return;
    this.#cancelRetry = this.#options.clock.after(RETRY_MS, () => void this.#catchUp());
  }

  /** What was sent, again and in order. A gap before the first of it is not ours: Redis lost what it had booked. */
  async #catchUp(): Promise<void> {
    invariant(this.#underWay === 0, "what is sent again is not on its way");
    try {
      for (let batch = this.#sent[0]; batch !== undefined; batch = this.#sent[0]) {
        const answer = await this.#book(batch, "");
        if (answer === "gap") await this.#book(batch, "force");
        this.#sent.shift();
      }
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
      this.#retryLater();
      return;
    }
    this.#stalled = false;
    this.#send();
  }

  async #book({ number, leases, rows }: NumberedBatch, force: "" | "force"): Promise<string> {
    const { link, tenant, gateway } = this.#options;
    const days = [...new Set([...rows.values()].map(({ day }) => day))];
    const months = new Map<string, { images: number; deviceMs: number }>();
    const increments: (string | number)[] = [];
    for (const row of rows.values()) {
      const month = row.day.slice(0, 7);
      const used = months.get(month) ?? { images: 0, deviceMs: 0 };
      months.set(month, { images: used.images + row.images, deviceMs: used.deviceMs + row.deviceMs });
      for (const field of USE_FIELDS) {
        if (row[field] === 0) continue;
        increments.push(days.indexOf(row.day) + 1, usageField(row, field), row[field]);
      }
    }
    const keys = accountKeys(link, tenant);
    const answer = await link.run((client) =>
      BOOK.runInOrder(
        client,
        [keys.account, keys.leases, keys.batchesOf(gateway), ...days.map(keys.usageOn)],
        [
          number,
          force,
          leases.length,
          ...leases,
          months.size,
          ...[...months].flatMap(([month, { images, deviceMs }]) => [month, images, deviceMs]),
          ...increments,
        ],
      ),
    );
    return answer as string;
  }
}

/** A tenant's keys in Redis, all of one slot. */
export function accountKeys(link: AccountsLink, tenant: string) {
  const key = (...parts: readonly string[]) => link.key("tenant", `{${tenant}}`, ...parts);
  return {
    account: key("account"),
    leases: key("leases"),
    batchesOf: (gateway: string) => key("batches", gateway),
    totalsOf: (jobId: string) => key("job", jobId),
    usageOn: (day: string) => key("usage", day),
  };
}

/** Key ids and models have no tab in them. */
function usageField({ key, model }: UsageRow, field: string): string {
  return `${key}\t${model}\t${field}`;
}

function emptyBatch(): Batch {
  return { leases: [], rows: new Map() };
}

function isEmpty({ leases, rows }: Batch): boolean {
  return leases.length === 0 && rows.size === 0;
}
