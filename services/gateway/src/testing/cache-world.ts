import { Deadline, ManualClock, type Random, seededRandom } from "@atelier/core";
import { createRegistry } from "@atelier/telemetry";
import { OwnAskCounts } from "../cache/ask-counts.ts";
import { createCacheMetrics } from "../cache/cache-metrics.ts";
import { type CacheRules, ExactCache } from "../cache/exact-cache.ts";
import { MemoryResults } from "../cache/memory-results.ts";
import { LOCAL_CALLER } from "../caller.ts";
import type { CacheUse, MakeLimits, Served } from "../generations/ports.ts";
import type { CompleteRequest, Generation, GenerationReceipt, ImageRequest } from "../image-request.ts";
import { MemoryStore } from "../shared/memory-store.ts";
import { imageRequest } from "./views.ts";

/** A request as it comes to the cache. */
export function completeRequestOf(changes: Partial<CompleteRequest> = {}): CompleteRequest {
  return { ...imageRequest(), prompt: "a mug", seed: undefined, ...changes };
}

/** What a worker came to. */
export function generationOf({
  seed,
  pictures = [Uint8Array.of(seed % 256)],
  receipt = {},
}: {
  seed: number;
  pictures?: readonly Uint8Array[];
  receipt?: Partial<GenerationReceipt>;
}): Generation {
  const made = { model: "m", modelDigest: "sha256:00", simulated: true, prompt: "a mug", negativePrompt: "" };
  return {
    pictures: pictures.map((data, i) => ({ data, mediaType: "image/png", width: 8, height: 8, seed: seed + i })),
    // The cache looks at a few fields, and keeps the others as they are.
    receipt: { ...made, seed, numImages: pictures.length, reusedSteps: 0, ...receipt } as GenerationReceipt,
  };
}

export interface Making {
  readonly image: ImageRequest;
  readonly limits: MakeLimits;
  finish(receipt?: Partial<GenerationReceipt>): void;
  fail(error: Error): void;
}

/** A cache in this process, what it has made, and callers of it. */
export class CacheWorld {
  readonly clock = new ManualClock(1_000_000);
  /** Every making that was begun, in order. */
  readonly makings: Making[] = [];
  readonly registry = createRegistry("gateway");
  readonly cache: ExactCache;
  modelDigest: string | undefined = "sha256:00";

  constructor({
    random = seededRandom(1),
    bytesMax = 1_000_000,
    ...rules
  }: Partial<CacheRules> & { random?: Random; bytesMax?: number } = {}) {
    const { clock } = this;
    const memory = new MemoryResults(clock, { bytesMax });
    this.cache = new ExactCache({
      clock,
      random,
      config: { scope: "tenant", ttlMs: 60_000, variants: 4, minAsks: 1, leaseMs: 3_000, ...rules },
      modelDigest: () => this.modelDigest,
      memory,
      ownAsks: new OwnAskCounts(clock, { windowMs: 60_000 }),
      store: new MemoryStore(clock),
      shared: undefined,
      metrics: createCacheMetrics(this.registry, memory),
    });
  }

  /** One request; `making` is finished at once unless it is to be held. */
  ask(
    changes: Partial<CompleteRequest> = {},
    { tenant = "t", use = {}, priority = "interactive" as const, signal = NEVER, ms = 60_000 }: Asking = {},
  ): Promise<Served> {
    const caller = { ...LOCAL_CALLER, tenant };
    const context = {
      caller,
      order: { priority, tenant },
      priority,
      deadline: Deadline.after(this.clock, ms),
      signal,
      cache: { read: true, store: true, approximate: false, ...use },
    };
    return this.cache.serve(completeRequestOf(changes), context, (image, limits) => {
      const making = Promise.withResolvers<Generation>();
      this.makings.push({
        image,
        limits,
        finish: (receipt = {}) => making.resolve(generationOf({ seed: image.seed, receipt })),
        fail: making.reject,
      });
      return making.promise;
    });
  }

  /** Asks, finishes what is made for it, and tells how it was served and with which seed. */
  async serve(...args: Parameters<CacheWorld["ask"]>): Promise<{ outcome: string; seed: number }> {
    const before = this.makings.length;
    const asked = this.ask(...args);
    await settle();
    this.makings[before]?.finish();
    const { outcome, request } = await asked;
    return { outcome, seed: request.seed };
  }
}

interface Asking {
  readonly tenant?: string;
  readonly use?: Partial<CacheUse>;
  readonly priority?: "interactive" | "standard" | "bulk";
  readonly signal?: AbortSignal;
  readonly ms?: number;
}

const NEVER = new AbortController().signal;
/** Whatever can happen without anybody's doing has happened. */
export const settle = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));
