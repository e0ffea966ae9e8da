import { createRequire } from "node:module";
import type { Clock } from "@atelier/core";
import { LRUCache } from "lru-cache";
import type { Index as VectorIndex } from "usearch";
import { type LatentEntry, latentBytes } from "./latent-entry.ts";

// Its entry for `import` calls itself without end under Node 24; the one for `require` is the same code.
const { Index, MetricKind } = createRequire(import.meta.url)("usearch") as typeof import("usearch");

export interface LatentIndexOptions {
  readonly clock: Clock;
  /** Of latents, wherever they lie, and of what is known of them here. */
  readonly bytesMax: number;
  /** Told of entries for which there was no more room. */
  readonly onEvicted: (entry: LatentEntry) => void;
}

export interface Neighbour {
  readonly entry: LatentEntry;
  /** Inner product: 1 is the same. */
  readonly similarity: number;
}

/** An index without entries takes 170 KB. */
const SCOPES_MAX = 256;
/** Seeds that are known of one prompt: more of them would hide its neighbours, and make no other picture better. */
export const SEEDS_MAX = 4;
/** As many prompts as the longest list of neighbours is to have, whatever seeds they are known with. */
const PROMPTS_SOUGHT = 4;
/** Of an entry beside its latents. */
const OVERHEAD_BYTES = 1_024;

/** Which pictures may be begun from, and which of them are of prompts most like another. The longest unused go first. */
export class LatentIndex {
  readonly #clock: Clock;
  readonly #scopes: LRUCache<string, Scope>;
  readonly #entries: LRUCache<string, LatentEntry>;

  constructor({ clock, bytesMax, onEvicted }: LatentIndexOptions) {
    this.#clock = clock;
    this.#entries = new LRUCache<string, LatentEntry>({
      maxSize: bytesMax,
      sizeCalculation: sizeOf,
      dispose: (entry, _id, reason) => {
        this.#scopes.peek(entry.scope)?.remove(entry);
        if (reason === "evict") onEvicted(entry);
      },
    });
    this.#scopes = new LRUCache<string, Scope>({
      max: SCOPES_MAX,
      dispose: (scope) => {
        for (const entry of scope.entries()) {
          this.#entries.delete(entry.id);
          onEvicted(entry);
        }
      },
    });
  }

  /** False where it is known, over, or enough is known of its like. */
  add(entry: LatentEntry): boolean {
    if (this.#entries.has(entry.id) || entry.untilMs <= this.#clock.nowMs()) return false;
    if (sizeOf(entry) > this.#entries.maxSize) return false;
    const scope = this.#scopes.get(entry.scope) ?? new Scope(entry.embedding.length);
    if (scope.dimensions !== entry.embedding.length || this.full(entry)) return false;
    this.#scopes.set(entry.scope, scope);
    scope.add(entry);
    this.#entries.set(entry.id, entry);
    return true;
  }

  /** Enough seeds of the prompt are known, or this one is. */
  full({ scope, subject, seed }: Pick<LatentEntry, "scope" | "subject" | "seed">): boolean {
    const known = this.#live(this.#scopes.peek(scope)?.ofPrompt(subject.prompt) ?? []);
    return known.length >= SEEDS_MAX || known.some((entry) => entry.seed === seed);
  }

  /** The most alike first. */
  nearest(scope: string, embedding: Float32Array): readonly Neighbour[] {
    const found = this.#scopes.get(scope)?.nearest(embedding, SEEDS_MAX * PROMPTS_SOUGHT) ?? [];
    const live = new Set(this.#live(found.map(({ entry }) => entry)));
    return found.filter(({ entry }) => live.has(entry));
  }

  /** It was of use. */
  touch({ id }: LatentEntry): void {
    this.#entries.get(id);
  }

  remove({ id }: LatentEntry): void {
    this.#entries.delete(id);
  }

  get count(): number {
    return this.#entries.size;
  }

  get bytes(): number {
    return this.#entries.calculatedSize;
  }

  #live(entries: readonly LatentEntry[]): readonly LatentEntry[] {
    const nowMs = this.#clock.nowMs();
    for (const entry of entries) if (entry.untilMs <= nowMs) this.remove(entry);
    return entries.filter(({ untilMs }) => untilMs > nowMs);
  }
}

class Scope {
  readonly dimensions: number;
  readonly #vectors: VectorIndex;
  readonly #byKey = new Map<bigint, LatentEntry>();
  readonly #keys = new Map<string, bigint>();
  readonly #byPrompt = new Map<string, Set<LatentEntry>>();
  #next = 0n;

  constructor(dimensions: number) {
    this.dimensions = dimensions;
    this.#vectors = new Index(dimensions, MetricKind.IP);
  }

  entries(): readonly LatentEntry[] {
    return [...this.#byKey.values()];
  }

  ofPrompt(prompt: string): readonly LatentEntry[] {
    return [...(this.#byPrompt.get(prompt) ?? [])];
  }

  add(entry: LatentEntry): void {
    const key = this.#next++;
    this.#vectors.add(key, entry.embedding, 1);
    this.#byKey.set(key, entry);
    this.#keys.set(entry.id, key);
    const { prompt } = entry.subject;
    this.#byPrompt.set(prompt, (this.#byPrompt.get(prompt) ?? new Set()).add(entry));
  }

  remove(entry: LatentEntry): void {
    const key = this.#keys.get(entry.id);
    if (key === undefined) return;
    this.#vectors.remove(key);
    this.#byKey.delete(key);
    this.#keys.delete(entry.id);
    const { prompt } = entry.subject;
    const same = this.#byPrompt.get(prompt);
    same?.delete(entry);
    if (same?.size === 0) this.#byPrompt.delete(prompt);
  }

  nearest(embedding: Float32Array, count: number): readonly Neighbour[] {
    if (this.#byKey.size === 0 || embedding.length !== this.dimensions) return [];
    const { keys, distances } = this.#vectors.search(embedding, Math.min(count, this.#byKey.size), 1);
    return Array.from(keys, (key, i) => ({ entry: this.#byKey.get(key), similarity: 1 - distances[i]! })).flatMap(
      ({ entry, similarity }) => (entry === undefined ? [] : [{ entry, similarity }]),
    );
  }
}

function sizeOf(entry: LatentEntry): number {
  return entry.steps.length * latentBytes(entry) + entry.embedding.byteLength + OVERHEAD_BYTES;
}
