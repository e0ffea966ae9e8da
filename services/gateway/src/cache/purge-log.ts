import { type Clock, invariant, ServingError } from "@atelier/core";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import type { Subject } from "./kept-result.ts";

/** What to drop: all that every part it names holds of; without any part, everything. */
export interface PurgeRule {
  readonly keeper?: string | undefined;
  readonly model?: string | undefined;
  readonly adapter?: string | undefined;
  /** In Unicode NFC. */
  readonly promptPrefix?: string | undefined;
}

export interface PurgeLogOptions {
  readonly store: SharedStore;
  readonly clock: Clock;
  /** How long results live: a rule about older ones is about nothing. */
  readonly ttlMs: number;
  /** Told of rules that are new here. */
  readonly onRules: (rules: readonly Rule[]) => void;
}

export interface Rule extends PurgeRule {
  /** Rules are numbered upwards, by the milliseconds since the Unix epoch where that is more than one further. */
  readonly number: number;
}

const KEY = "cache:purges";
const CHANNEL = "cache:purges";
/** How much later than the others a gateway that missed the message may hear of a purge. */
const REREAD_MS = 2_000;
/** Beyond it the oldest rule drops all that is as old as itself. */
const RULES_MAX = 500;
/** Gateways that purge at one moment take turns. */
const ATTEMPTS_MAX = 20;

/**
 * What was purged, in order, for as long as anything older may live. Every result knows the newest rule at its birth, so
 * that whether it was purged needs neither clocks nor a list of what there is; and one that was being made while its
 * like was purged is not kept. Gateways hear of a rule by a message, and read the whole log every two seconds besides.
 */
export class PurgeLog {
  readonly #options: PurgeLogOptions;
  readonly #endSubscription: () => void;
  #cancelReread: () => void = () => {};
  #closed = false;
  #log: Log = { floor: 0, rules: [] };

  constructor(options: PurgeLogOptions) {
    this.#options = options;
    this.#endSubscription = options.store.subscribe(CHANNEL, () => void this.reread());
    this.#rereadLater(0);
  }

  /** The number of the newest rule that is known here; 0: none. */
  get newest(): number {
    return this.#log.rules.at(-1)?.number ?? this.#log.floor;
  }

  get count(): number {
    return this.#log.rules.length;
  }

  /** Whether a result of `subject` that was begun when `bornAt` was the newest rule has been purged since. */
  readonly covers = (subject: Subject, bornAt: number): boolean => {
    if (bornAt < this.#log.floor) return true;
    return this.#log.rules.some((rule) => rule.number > bornAt && matches(rule, subject));
  };

  /** @throws ServingError OVERLOADED where other gateways cannot be told; here it holds all the same. */
  async purge(rule: PurgeRule): Promise<void> {
    const { store } = this.#options;
    try {
      await this.#append(rule);
      await store.publish(CHANNEL, "");
    } catch (cause) {
      if (!(cause instanceof StoreUnavailable)) throw cause;
      this.#take(this.#with(this.#log, rule));
      const message =
        "this gateway has purged what it had at hand, but cannot reach Redis to purge the rest: send it again";
      throw new ServingError("OVERLOADED", message, { cause, retryAfterMs: REREAD_MS });
    }
  }

  /** Never rejects: without the store what is known here goes on to hold. */
  async reread(): Promise<void> {
    try {
      this.#take(readLog(await this.#options.store.get(KEY)));
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
    }
  }

  close(): void {
    this.#closed = true;
    this.#cancelReread();
    this.#endSubscription();
  }

  async #append(rule: PurgeRule): Promise<void> {
    const { store, ttlMs } = this.#options;
    const life = { ttlMs: 2 * ttlMs };
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      const before = await store.get(KEY);
      const log = this.#with(merge(this.#log, readLog(before)), rule);
      const text = JSON.stringify(log);
      const written =
        before === undefined
          ? await store.setIfAbsent(KEY, text, life)
          : await store.replaceIf(KEY, before, text, life);
      if (written) return this.#take(log);
    }
    throw new StoreUnavailable(`${ATTEMPTS_MAX} others purged at the same moment`);
  }

  #with({ floor, rules }: Log, rule: PurgeRule): Log {
    const { clock, ttlMs } = this.#options;
    const newest = rules.at(-1)?.number ?? floor;
    const added = [...rules, { ...rule, number: Math.max(newest + 1, Math.floor(clock.nowMs())) }];
    const live = added.filter(({ number }) => number > clock.nowMs() - 2 * ttlMs);
    const kept = live.slice(-RULES_MAX);
    const dropped = live.at(-RULES_MAX - 1);
    return { floor: Math.max(floor, dropped?.number ?? 0), rules: kept };
  }

  #take(log: Log): void {
    const before = this.#log;
    this.#log = merge(before, log);
    const known = new Set(before.rules.map(({ number }) => number));
    const fresh = this.#log.rules.filter(({ number }) => !known.has(number));
    if (fresh.length > 0 || this.#log.floor > before.floor) this.#options.onRules(fresh);
  }

  #rereadLater(afterMs = REREAD_MS): void {
    if (this.#closed) return;
    this.#cancelReread = this.#options.clock.after(afterMs, () => {
      void this.reread().finally(() => this.#rereadLater());
    });
  }
}

export function matches({ keeper, model, adapter, promptPrefix }: PurgeRule, subject: Subject): boolean {
  return (
    (keeper === undefined || keeper === subject.keeper) &&
    (model === undefined || model === subject.model) &&
    (adapter === undefined || subject.adapters.includes(adapter)) &&
    (promptPrefix === undefined || subject.prompt.startsWith(promptPrefix))
  );
}

interface Log {
  /** Whatever was begun before this rule is purged. */
  readonly floor: number;
  /** In order. */
  readonly rules: readonly Rule[];
}

/** What either knows: a Redis that lost its data does not undo a purge here. */
function merge(one: Log, other: Log): Log {
  const rules = new Map([...one.rules, ...other.rules].map((rule) => [rule.number, rule]));
  const floor = Math.max(one.floor, other.floor);
  const inOrder = [...rules.values()].filter(({ number }) => number > floor).sort((a, b) => a.number - b.number);
  return { floor, rules: inOrder.slice(-RULES_MAX) };
}

function readLog(bytes: Buffer | undefined): Log {
  if (bytes === undefined) return { floor: 0, rules: [] };
  try {
    const { floor, rules } = JSON.parse(bytes.toString()) as Log;
    invariant(Number.isFinite(floor) && rules.every(({ number }) => Number.isFinite(number)), "a log of purges");
    return { floor, rules };
  } catch {
    // Damaged: what is known here goes on to hold, and the next purge writes it anew.
    return { floor: 0, rules: [] };
  }
}
