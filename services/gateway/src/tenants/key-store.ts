import type { Holdings, KeyRecord, TenantSettings } from "./records.ts";

/**
 * Where keys and tenants are kept that the admin API made. Every method rejects with StoreUnavailable where it cannot be
 * reached in time; a change is then not made.
 */
export interface KeyStore {
  load(): Promise<Holdings>;
  /** False where the id is taken; then nothing changes. */
  addKey(key: KeyRecord): Promise<boolean>;
  /** False where the key is not as `from` says (any more): somebody else changed it. Atomic. */
  replaceKey(from: KeyRecord, to: KeyRecord): Promise<boolean>;
  /** False where there is none. */
  deleteKey(id: string): Promise<boolean>;
  putTenant(tenant: TenantSettings): Promise<void>;
  /** Adds to what is known of when keys were last used; milliseconds since the epoch by id. */
  noteUsed(moments: ReadonlyMap<string, number>): Promise<void>;
  lastUsed(): Promise<ReadonlyMap<string, number>>;
  /** Calls when another process may have changed something: a hint, which may be missed. The result ends it. */
  onChange(listener: () => void): () => void;
}
