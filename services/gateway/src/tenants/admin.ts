import { type Clock, hashApiKey, newApiKey, ServingError } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import type { Caller } from "../caller.ts";
import { StoreUnavailable } from "../shared/shared-store.ts";
import type { KnownKey, TenantDirectory } from "./directory.ts";
import type { KeyStore } from "./key-store.ts";
import { defaultScopes, type KeyRecord, type TenantSettings } from "./records.ts";

export interface KeyAdminOptions {
  readonly directory: TenantDirectory;
  readonly store: KeyStore;
  readonly clock: Clock;
  readonly log: Logger;
}

type KeyChoices = Omit<KeyRecord, "id" | "hash" | "created_at" | "previous" | "scopes"> & {
  readonly scopes?: KeyRecord["scopes"] | undefined;
};
type KeyChanges = { readonly [Field in keyof KeyChoices]?: KeyChoices[Field] | undefined };

/** A key whose secret is told this once. */
export interface IssuedKey {
  readonly record: KeyRecord;
  readonly secret: string;
}

/** Changes to keys and tenants, each written to the log with who made it. Those of the configuration are not changed here. */
export class KeyAdmin {
  readonly #options: KeyAdminOptions;
  readonly #audit: Logger;

  constructor(options: KeyAdminOptions) {
    this.#options = options;
    const { log } = options;
    // Written where only warnings are, too.
    this.#audit = log.child({ audit: true }, log.level === "silent" ? {} : { level: "info" });
  }

  async create(choices: KeyChoices, by: Caller): Promise<IssuedKey> {
    const { directory, store, clock } = this.#options;
    if (!directory.keysRequired && choices.role !== "admin") {
      const message = `role is "${choices.role}", but the first key must be an admin's: with it keys are asked for, and no other could make more`;
      throw new ServingError("CONFLICT", message, { field: "role" });
    }
    this.#checkFuture(choices.expires_at);
    const key = newApiKey();
    const record: KeyRecord = {
      id: key.id,
      hash: hashApiKey(key),
      ...choices,
      scopes: choices.scopes ?? defaultScopes(choices.role),
      created_at: new Date(clock.nowMs()).toISOString(),
    };
    if (!(await reach(store.addKey(record)))) throw changedMeanwhile();
    await this.#done("key created", by, { key_id: key.id, tenant: record.tenant, role: record.role });
    return { record, secret: key.text };
  }

  async change(id: string, changes: KeyChanges, by: Caller): Promise<KeyRecord> {
    const from = this.#own(id);
    if (changes.expires_at !== undefined) this.#checkFuture(changes.expires_at);
    const given = Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined));
    const to: KeyRecord = { ...from, ...given };
    if (to.role !== "admin" || !to.scopes.includes("admin") || to.expires_at !== null) this.#checkNotLastAdmin(from);
    await this.#replace(from, to);
    await this.#done("key changed", by, { key_id: id, changes: given });
    return to;
  }

  /** A new secret for the key; the one before is good for `graceMs` more. A second rotation ends the grace of the first. */
  async rotate(id: string, { graceMs }: { graceMs: number }, by: Caller): Promise<IssuedKey> {
    const from = this.#own(id);
    const key = newApiKey(id);
    const until = new Date(this.#options.clock.nowMs() + graceMs).toISOString();
    const { previous: _, ...rest } = from;
    const to: KeyRecord = {
      ...rest,
      hash: hashApiKey(key),
      ...(graceMs > 0 && { previous: { hash: from.hash, until } }),
    };
    await this.#replace(from, to);
    await this.#done("key rotated", by, { key_id: id, grace_ms: graceMs });
    return { record: to, secret: key.text };
  }

  async revoke(id: string, by: Caller): Promise<void> {
    this.#checkNotLastAdmin(this.#own(id));
    if (!(await reach(this.#options.store.deleteKey(id)))) throw unknownKey(id);
    await this.#done("key revoked", by, { key_id: id });
  }

  async setTenant(settings: TenantSettings, by: Caller): Promise<void> {
    const source = this.#options.directory.tenantSource(settings.id);
    if (source !== undefined && source !== "store") throw fromElsewhere(`tenant ${settings.id}`, source);
    await reach(this.#options.store.putTenant(settings));
    await this.#done("tenant set", by, { tenant: settings.id, settings });
  }

  /** @throws ServingError NOT_FOUND. */
  find(id: string): KnownKey {
    const known = this.#options.directory.key(id);
    if (known === undefined) throw unknownKey(id);
    return known;
  }

  #own(id: string): KeyRecord {
    const { record, source } = this.find(id);
    if (source !== "store") throw fromElsewhere(`key ${id}`, source);
    return record;
  }

  async #replace(from: KeyRecord, to: KeyRecord): Promise<void> {
    if (!(await reach(this.#options.store.replaceKey(from, to)))) {
      await this.#options.directory.refresh();
      throw changedMeanwhile();
    }
  }

  /** Without an admin's key nobody could make one, but whoever has the gateway's files. */
  #checkNotLastAdmin(record: KeyRecord): void {
    if (!this.#administers(record)) return;
    const others = this.#options.directory.keys().filter((known) => known.record.id !== record.id);
    if (others.some((known) => this.#administers(known.record))) return;
    throw new ServingError("CONFLICT", `key ${record.id} is the last that administers; make another first`);
  }

  #administers({ role, scopes, expires_at: expiresAt }: KeyRecord): boolean {
    const expired = expiresAt !== null && Date.parse(expiresAt) <= this.#options.clock.nowMs();
    return role === "admin" && scopes.includes("admin") && !expired;
  }

  #checkFuture(expiresAt: string | null): void {
    if (expiresAt === null || Date.parse(expiresAt) > this.#options.clock.nowMs()) return;
    throw new ServingError("INVALID_REQUEST", `expires_at is ${expiresAt}, which has passed`, { field: "expires_at" });
  }

  /** This gateway knows at once; the store tells the others. */
  async #done(action: string, by: Caller, what: Record<string, unknown>): Promise<void> {
    this.#audit.info({ by_key: by.keyId ?? "-", by_tenant: by.tenant, ...what }, action);
    await this.#options.directory.refresh();
  }
}

/** Where keys are kept must be reached to change them: a change that waits is none that anybody could rely on. */
async function reach<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof StoreUnavailable)) throw error;
    const message = "where keys are kept cannot be reached; the change may not have been made";
    throw new ServingError("OVERLOADED", message, { cause: error, retryAfterMs: 2_000 });
  }
}

function unknownKey(id: string): ServingError {
  return new ServingError("NOT_FOUND", `there is no key ${id}`, { field: "id" });
}

function changedMeanwhile(): ServingError {
  return new ServingError("CONFLICT", "somebody else changed the key at the same moment; look at it and try again");
}

function fromElsewhere(what: string, source: string): ServingError {
  return new ServingError("CONFLICT", `${what} comes from the ${source}; change it there`);
}
