import { type Clock, invariant } from "@atelier/core";
import type { Life, SharedStore } from "./shared-store.ts";

export interface MemoryStoreLimits {
  readonly entriesMax: number;
  /** Of keys and values together; what the map itself takes comes on top. */
  readonly bytesMax: number;
}

/** A hundred thousand leases and counters, or some hundreds of answers with pictures in them. */
const LIMITS: MemoryStoreLimits = { entriesMax: 100_000, bytesMax: 256 * 1024 * 1024 };

/**
 * What a gateway keeps for itself where there is no Redis. Over its limits it forgets what was written longest ago,
 * leases included: a bounded memory cannot promise more.
 */
export class MemoryStore implements SharedStore {
  /** In the order in which they were written. */
  readonly #entries = new Map<string, Entry>();
  readonly #listeners = new Map<string, Set<(message: string) => void>>();
  #bytes = 0;
  readonly #clock: Clock;
  readonly #limits: MemoryStoreLimits;

  constructor(clock: Clock, limits: Partial<MemoryStoreLimits> = {}) {
    this.#clock = clock;
    this.#limits = { ...LIMITS, ...limits };
  }

  async get(key: string): Promise<Buffer | undefined> {
    return this.#read(key);
  }

  async set(key: string, value: string | Uint8Array, life: Life): Promise<void> {
    this.#write(key, value, life);
  }

  async setIfAbsent(key: string, value: string | Uint8Array, life: Life): Promise<boolean> {
    if (this.#read(key) !== undefined) return false;
    this.#write(key, value, life);
    return true;
  }

  async replaceIf(
    key: string,
    expected: string | Uint8Array,
    value: string | Uint8Array,
    life: Life | "same",
  ): Promise<boolean> {
    if (!this.#holds(key, expected)) return false;
    const untilMs = this.#entries.get(key)?.untilMs ?? 0;
    this.#write(key, value, life === "same" ? { ttlMs: untilMs - this.#clock.nowMs() } : life);
    return true;
  }

  async deleteIf(key: string, expected: string | Uint8Array): Promise<boolean> {
    if (!this.#holds(key, expected)) return false;
    this.#remove(key);
    return true;
  }

  async delete(key: string): Promise<void> {
    this.#remove(key);
  }

  /** Listeners hear it after the caller's turn, as they would from afar. */
  async publish(channel: string, message: string): Promise<void> {
    for (const listener of this.#listeners.get(channel) ?? []) {
      queueMicrotask(() => {
        if (this.#listeners.get(channel)?.has(listener)) listener(message);
      });
    }
  }

  subscribe(channel: string, listener: (message: string) => void): () => void {
    const listeners = this.#listeners.get(channel) ?? new Set();
    this.#listeners.set(channel, listeners);
    const own = (message: string) => listener(message); // one listener may subscribe twice
    listeners.add(own);
    return () => {
      listeners.delete(own);
      if (listeners.size === 0 && this.#listeners.get(channel) === listeners) this.#listeners.delete(channel);
    };
  }

  #read(key: string): Buffer | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    if (entry.untilMs > this.#clock.nowMs()) return entry.value;
    this.#remove(key);
    return undefined;
  }

  #holds(key: string, expected: string | Uint8Array): boolean {
    return this.#read(key)?.equals(Buffer.from(expected)) ?? false;
  }

  #write(key: string, value: string | Uint8Array, { ttlMs }: Life): void {
    invariant(ttlMs > 0, "a value lives for some time");
    this.#remove(key);
    const entry = { value: Buffer.from(value), untilMs: this.#clock.nowMs() + ttlMs };
    this.#entries.set(key, entry);
    this.#bytes += sizeOf(key, entry);
    const { entriesMax, bytesMax } = this.#limits;
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= entriesMax && this.#bytes <= bytesMax) break;
      this.#remove(oldest);
    }
  }

  #remove(key: string): void {
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    this.#entries.delete(key);
    this.#bytes -= sizeOf(key, entry);
  }
}

interface Entry {
  readonly value: Buffer;
  readonly untilMs: number;
}

const sizeOf = (key: string, { value }: Entry): number => Buffer.byteLength(key) + value.length;
