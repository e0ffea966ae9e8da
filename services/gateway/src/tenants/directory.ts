import { type Clock, ConfigError } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import { StoreUnavailable } from "../shared/shared-store.ts";
import type { KeyStore } from "./key-store.ts";
import { defaultSettings, type Holdings, type KeyRecord, type TenantSettings } from "./records.ts";
import type { StaticKeys } from "./static-keys.ts";

export type KeySource = StaticKeys["name"] | "store";

export interface KnownKey {
  readonly record: KeyRecord;
  readonly source: KeySource;
}

export interface DirectoryOptions {
  readonly clock: Clock;
  readonly log: Logger;
  /** In order of precedence, before the store. */
  readonly configured: readonly StaticKeys[];
  readonly store: KeyStore;
  /** What callers without a key may do while there is none: everything, make pictures, or nothing. */
  readonly anonymous: "all" | "pictures" | "nothing";
}

/** A change of which nobody was told, as of the file or after a lost message, is seen within this. */
const POLL_MS = 3_000;
const USES_FLUSH_MS = 15_000;

/**
 * Every key and tenant there is, in memory: a request is authenticated without a question to anybody, and keys that
 * were known go on to work while the store is away.
 */
export class TenantDirectory {
  readonly #options: DirectoryOptions;
  readonly #held = new Map<KeySource, Holdings>();
  readonly #listeners = new Set<() => void>();
  readonly #uses = new Map<string, number>();
  #keys = new Map<string, KnownKey>();
  #tenants = new Map<string, { readonly settings: TenantSettings; readonly source: KeySource }>();
  #keysSeen = false;
  #failing: string | undefined;
  #refreshing: Promise<void> | undefined;
  #cancelPoll: (() => void) | undefined;
  #cancelUses: (() => void) | undefined;
  #endHints: (() => void) | undefined;
  #closed = false;

  constructor(options: DirectoryOptions) {
    this.#options = options;
  }

  /** @throws ConfigError where the file or the environment cannot be read. A store that is away is asked again later. */
  async start(): Promise<void> {
    for (const source of this.#options.configured) {
      try {
        const holdings = await source.read();
        if (holdings !== undefined) this.#held.set(source.name, holdings);
      } catch (error) {
        if (error instanceof ConfigError) throw error;
        throw new ConfigError(`ATELIER_KEYS_FILE cannot be read: ${(error as Error).message}`, { cause: error });
      }
    }
    this.#merge();
    await this.refresh();
    this.#endHints = this.#options.store.onChange(() => void this.refresh());
    this.#poll();
    this.#flushUsesLater();
  }

  /** True once the store was read: what is not here is nowhere. */
  get complete(): boolean {
    return this.#held.has("store");
  }

  /** Keys are asked for once there were any, or a place for them was configured; deleting the last opens nothing. */
  get keysRequired(): boolean {
    return this.keysKnown || this.#options.anonymous === "nothing";
  }

  /** There are keys, or a place of their own for them: a file that is empty today may have some tomorrow. */
  get keysKnown(): boolean {
    return this.#keysSeen || this.#options.configured.length > 0;
  }

  /**
   * Callers without a key may administer. Not until the store was read, since there may be keys in it: whoever comes by
   * loopback may make pictures meanwhile.
   */
  get anonymousAdmin(): boolean {
    return this.#options.anonymous === "all" && this.complete;
  }

  key(id: string): KnownKey | undefined {
    return this.#keys.get(id);
  }

  keys(): readonly KnownKey[] {
    return [...this.#keys.values()];
  }

  tenant(id: string): TenantSettings {
    return this.#tenants.get(id)?.settings ?? defaultSettings(id);
  }

  /** Where its settings come from; undefined where they are the defaults. */
  tenantSource(id: string): KeySource | undefined {
    return this.#tenants.get(id)?.source;
  }

  /** Those that have settings or keys, by name. */
  tenantIds(): readonly string[] {
    const named = this.keys().map(({ record }) => record.tenant);
    return [...new Set([...this.#tenants.keys(), ...named])].sort();
  }

  /** Calls after every change. The result ends it. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  noteUsed(id: string): void {
    this.#uses.set(id, this.#options.clock.nowMs());
  }

  /** Milliseconds since the epoch by key id, as far as is known. */
  async lastUsed(): Promise<ReadonlyMap<string, number>> {
    const stored = await this.#options.store.lastUsed().catch(unlessAway(new Map<string, number>()));
    const merged = new Map(stored);
    for (const [id, atMs] of this.#uses) merged.set(id, Math.max(atMs, merged.get(id) ?? 0));
    return merged;
  }

  /** Reads every source again. Never rejects: what cannot be read stays as it was known. */
  async refresh(): Promise<void> {
    // One that is under way may have read before the change that we were told of: another follows it.
    const before = this.#refreshing;
    const mine = (async () => {
      await before;
      await this.#readAll();
    })();
    this.#refreshing = mine;
    await mine;
    if (this.#refreshing === mine) this.#refreshing = undefined;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#cancelPoll?.();
    this.#cancelUses?.();
    this.#endHints?.();
    await this.#flushUses();
  }

  async #readAll(): Promise<void> {
    const problems: string[] = [];
    let changed = false;
    for (const source of this.#options.configured) {
      try {
        const holdings = await source.read();
        if (holdings === undefined) continue;
        this.#held.set(source.name, holdings);
        changed = true;
      } catch (error) {
        problems.push((error as Error).message);
      }
    }
    try {
      const holdings = await this.#options.store.load();
      changed ||= JSON.stringify(holdings) !== JSON.stringify(this.#held.get("store"));
      this.#held.set("store", holdings);
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
      problems.push(`keys kept in the store: ${error.message}`);
    }
    this.#report(problems.join("; ") || undefined);
    if (!changed || this.#closed) return;
    this.#merge();
    for (const listener of this.#listeners) listener();
  }

  /** Once when it begins and once when it ends, however often it is tried between. */
  #report(problem: string | undefined): void {
    if (problem === this.#failing) return;
    const { log } = this.#options;
    if (problem !== undefined) log.error({ problem }, "keys could not be read again; those known before stay in force");
    else log.info("keys can be read again");
    this.#failing = problem;
  }

  #merge(): void {
    this.#keys = new Map();
    this.#tenants = new Map();
    const order: KeySource[] = [...this.#options.configured.map(({ name }) => name), "store"];
    for (const source of order) {
      for (const record of this.#held.get(source)?.keys ?? []) {
        if (!this.#keys.has(record.id)) this.#keys.set(record.id, { record, source });
      }
      for (const settings of this.#held.get(source)?.tenants ?? []) {
        if (!this.#tenants.has(settings.id)) this.#tenants.set(settings.id, { settings, source });
      }
    }
    this.#keysSeen ||= this.#keys.size > 0;
  }

  #poll(): void {
    if (this.#closed) return;
    this.#cancelPoll = this.#options.clock.after(POLL_MS, () => void this.refresh().then(() => this.#poll()));
  }

  #flushUsesLater(): void {
    if (this.#closed) return;
    this.#cancelUses = this.#options.clock.after(
      USES_FLUSH_MS,
      () => void this.#flushUses().then(() => this.#flushUsesLater()),
    );
  }

  /** Best effort: a moment of use that is lost says "earlier", which nothing depends on. */
  async #flushUses(): Promise<void> {
    if (this.#uses.size === 0) return;
    const uses = new Map(this.#uses);
    try {
      await this.#options.store.noteUsed(uses);
    } catch (error) {
      return unlessAway(undefined)(error);
    }
    for (const [id, atMs] of uses) if (this.#uses.get(id) === atMs) this.#uses.delete(id);
  }
}

function unlessAway<T>(instead: T): (error: unknown) => T {
  return (error) => {
    if (error instanceof StoreUnavailable) return instead;
    throw error;
  };
}
