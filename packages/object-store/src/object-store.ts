import type { Readable } from "node:stream";

/**
 * Where pictures, sheets and manifests lie: files, or a bucket. A key is one to sixteen names of letters, digits, `.`, `_`
 * and `-` (none of them `.` or `..`), with `/` between, 512 characters at most; `checkKey` holds that for every adapter.
 *
 * Everything rejects with ServingError STORAGE_UNAVAILABLE where the store cannot be reached, does not answer in time or
 * is full; its message says which. An object is there whole or not at all: nobody ever reads half of one.
 */
export interface ObjectStore {
  /** Writes or replaces; resolves once it is durable. A stream is never held whole, whatever its length. */
  put(key: string, body: Uint8Array | AsyncIterable<Uint8Array>, options?: PutOptions): Promise<StoredObject>;
  /** Undefined where there is none. The body must be read or destroyed. */
  get(key: string): Promise<OpenObject | undefined>;
  /** Whether it is there, and how large; undefined where it is not. */
  head(key: string): Promise<StoredObject | undefined>;
  /** What is not there is removed already. */
  remove(key: string): Promise<void>;
  /** Every key that begins with `prefix`, which ends in "/"; in order of key. */
  list(prefix: string): AsyncIterable<StoredObject>;
  /** As `remove` of all that `list` gives; gives how many there were. */
  removeAll(prefix: string): Promise<number>;
  /**
   * A link that lets its holder read the object until it expires, without asking us; undefined where the store has none
   * (files), and callers send the bytes themselves.
   */
  link(key: string, options: LinkOptions): Promise<string | undefined>;
  /** Whether it can be written now: resolves, or rejects with what is wrong. */
  check(): Promise<void>;
  close(): Promise<void>;
}

export interface PutOptions {
  /** Such as "image/png"; "application/octet-stream" by default. */
  readonly mediaType?: string;
  /** Ends the writing; nothing is left of it. */
  readonly signal?: AbortSignal;
}

export interface StoredObject {
  readonly key: string;
  readonly bytes: number;
}

export interface OpenObject extends StoredObject {
  readonly body: Readable;
}

export interface LinkOptions {
  readonly expiresMs: number;
  /** The file name that a browser saves it under. */
  readonly downloadName?: string;
}
