/**
 * What gateways share, or what one keeps for itself where there is nothing to share with: small values under keys, each
 * with a time to live. Every method rejects with StoreUnavailable where the store cannot be reached in time; what to do
 * without it is the caller's to decide.
 */
export interface SharedStore {
  get(key: string): Promise<Buffer | undefined>;
  set(key: string, value: string | Uint8Array, life: Life): Promise<void>;
  /** False where there is a value already; then nothing changes. */
  setIfAbsent(key: string, value: string | Uint8Array, life: Life): Promise<boolean>;
  /**
   * False where the value is not `expected` (any more). Atomic; also renews a lease, with the same value again. With
   * "same" the new value lives as long as the one before would have.
   */
  replaceIf(
    key: string,
    expected: string | Uint8Array,
    value: string | Uint8Array,
    life: Life | "same",
  ): Promise<boolean>;
  /** False where the value is not `expected` (any more). Atomic. */
  deleteIf(key: string, expected: string | Uint8Array): Promise<boolean>;
  delete(key: string): Promise<void>;
  /**
   * To every listener of the channel, in every gateway. At most once, since who is not connected misses it, and in no
   * promised order: a cluster takes messages at any of its nodes.
   */
  publish(channel: string, message: string): Promise<void>;
  /** The result ends it. */
  subscribe(channel: string, listener: (message: string) => void): () => void;
}

export interface Life {
  /** Milliseconds; over 0. */
  readonly ttlMs: number;
}

export class StoreUnavailable extends Error {
  override readonly name = "StoreUnavailable";
}
