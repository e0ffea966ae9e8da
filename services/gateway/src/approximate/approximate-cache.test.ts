import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { createRegistry } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import type { CacheUse, PassingLatent } from "../generations/ports.ts";
import type { Generation, ImageRequest, StartLatent } from "../image-request.ts";
import { MemoryStore } from "../shared/memory-store.ts";
import { BreakableStore } from "../testing/breakable-store.ts";
import { generationOf, settle } from "../testing/cache-world.ts";
import { imageRequest } from "../testing/views.ts";
import { ApproximateCache, type ApproximateMode } from "./approximate-cache.ts";
import { createApproximateMetrics } from "./approximate-metrics.ts";
import { KeptLatents } from "./kept-latents.ts";
import { LatentIndex } from "./latent-index.ts";

/** Prompts by direction in a plane: what is 10 degrees off has a similarity of 0.985, 45 degrees 0.71. */
const RED = "a red mug";
const CRIMSON = "a crimson mug";
const SHIP = "a ship at sea";
const DEGREES: Readonly<Record<string, number>> = {
  [RED]: 0,
  [CRIMSON]: 10,
  [SHIP]: 90,
  "a rose mug": 30,
  "a plant": 180,
};
const TABLE = [
  { minSimilarity: 0.98, fraction: 0.4 },
  { minSimilarity: 0.85, fraction: 0.2 },
];

describe("a picture that may begin from a similar prompt's", () => {
  it("begins at the step that their similarity allows, from the latent that was kept there", async () => {
    const { ask } = world();
    expect(await ask({ prompt: RED })).toBe("noise");
    expect(await ask({ prompt: CRIMSON, seed: 9 })).toBe("step 8 of a red mug:1"); // 0.4 of 20 steps
    expect(await ask({ prompt: "a rose mug" })).toBe("step 4 of a red mug:1"); // 0.2
    expect(await ask({ prompt: SHIP })).toBe("noise");
  });

  it("begins from noise, and keeps nothing, with a model of which nothing was learned", async () => {
    const { ask, index, watched } = world();
    await ask({ prompt: RED, model: "unlearned" });
    expect(await ask({ prompt: CRIMSON, model: "unlearned" })).toBe("noise");
    expect([index.count, watched.at(-1)]).toEqual([0, false]);
  });

  it("begins no later than at a latent that passed", async () => {
    const { ask } = world({ every: 5 });
    await ask({ prompt: RED });
    expect(await ask({ prompt: CRIMSON })).toBe("step 5 of a red mug:1");
    expect(await ask({ prompt: "a rose mug" })).toBe("noise"); // it could at step 4, and 5 is too late
  });

  it("begins from noise where its request does not allow it, and when all are to it does all the same for who wants none", async () => {
    const onRequest = world();
    await onRequest.ask({ prompt: RED });
    expect(await onRequest.ask({ prompt: CRIMSON }, { use: { approximate: false } })).toBe("noise");
    const always = world({ mode: "always" });
    expect(always.cache.allowed({ read: true, store: true, approximate: false })).toBe(true);
    expect(always.cache.allowed({ read: false, store: true, approximate: true })).toBe(false);
    expect(onRequest.cache.allowed({ read: true, store: true, approximate: false })).toBe(false);
  });

  it("keeps nothing for a tenant that never allowed it, and of its other requests once it has", async () => {
    const { ask, index, watched } = world();
    await ask({ prompt: RED }, { use: { approximate: false } });
    expect([index.count, watched.at(-1)]).toEqual([0, false]); // nor are checkpoints asked for
    await ask({ prompt: SHIP });
    await ask({ prompt: RED, seed: 2 }, { use: { approximate: false } });
    expect(index.count).toBe(2);
    await ask({ prompt: CRIMSON }, { use: { approximate: false, store: false } });
    expect(index.count).toBe(2);
  });

  it.each([
    ["another tenant's", {}, { tenant: "other" }],
    ["another size's", { width: 512 }, {}],
    ["another count of steps'", { steps: 21 }, {}],
    ["another guidance's", { guidanceScale: 3 }, {}],
    ["another sampler's", { sampler: "ddim" }, {}],
    ["another spacing's of the noise levels", { karrasSigmas: true }, {}],
    ["another negative prompt's", { negativePrompt: "blur" }, {}],
    ["another adapter's", { adapters: [{ name: "brand", weight: 1 }] }, {}],
    ["any, where it has a picture of its own", { initPicture: { bytes: Uint8Array.of(1), strength: 0.5 } }, {}],
    ["any, where it is several pictures, which would be one", { numImages: 2 }, {}],
  ] as const)("does not begin from %s", async (_, changes, asking) => {
    const { ask } = world();
    await ask({ prompt: RED });
    expect(await ask({ prompt: CRIMSON, ...changes }, asking)).toBe("noise");
    expect(await ask({ prompt: CRIMSON })).toBe("step 8 of a red mug:1");
  });

  it("does not begin from another model's, by its digest", async () => {
    const it = world();
    await it.ask({ prompt: RED });
    it.state.digest = "sha256:11";
    expect(await it.ask({ prompt: CRIMSON })).toBe("noise");
  });

  it("does not begin from another seed of its own prompt: that would be the same picture", async () => {
    const { ask } = world();
    await ask({ prompt: RED, seed: 1 });
    expect(await ask({ prompt: RED, seed: 2 })).toBe("noise");
  });

  it("begins from the same seed of the similar prompt, or from one by its own: other seeds, other pictures", async () => {
    const { ask } = world();
    for (const seed of [4, 5, 6]) await ask({ prompt: RED, seed });
    const begun = [];
    for (const seed of [5, 7, 8, 9]) begun.push(await ask({ prompt: CRIMSON, seed }));
    expect(begun).toEqual([5, 5, 6, 4].map((seed) => `step 8 of a red mug:${seed}`));
  });

  it("is no start itself, where it began from another's", async () => {
    const { ask, index } = world();
    await ask({ prompt: RED });
    await ask({ prompt: CRIMSON });
    expect(index.count).toBe(1);
  });

  it("is made anew where the latent is damaged, cut off or gone, and that one is not tried again", async () => {
    for (const harm of [
      (bytes: Uint8Array) => Uint8Array.from(bytes, (byte, i) => (i === 100 ? byte ^ 1 : byte)),
      (bytes: Uint8Array) => bytes.subarray(4),
      () => undefined,
    ]) {
      const { ask, memory, latentKeys, lookups } = world();
      await ask({ prompt: RED });
      const key = latentKeys()[1]!; // of step 8
      const harmed = harm((await memory.get(key))!);
      if (harmed === undefined) await memory.delete(key);
      else await memory.set(key, harmed, { ttlMs: 1_000 });
      expect(await ask({ prompt: CRIMSON })).toBe("noise");
      expect(await lookups()).toMatchObject({ lost: 1 });
    }
  });

  it("is made anew where the prompt cannot be embedded, and is not kept either", async () => {
    const it = world();
    await it.ask({ prompt: RED });
    it.state.embeds = false;
    expect(await it.ask({ prompt: CRIMSON })).toBe("noise");
    expect(it.index.count).toBe(1);
    expect(await it.lookups()).toEqual({ none: 1, no_embedding: 1 });
  });

  it("is made anew where the store is out of reach", async () => {
    const it = world();
    await it.ask({ prompt: RED });
    it.store.away = true;
    expect(await it.ask({ prompt: CRIMSON })).toBe("noise");
    expect(await it.ask({ prompt: SHIP })).toBe("noise");
  });

  it("is made anew where a worker refuses the latent; other failures are the request's", async () => {
    const it = world();
    await it.ask({ prompt: RED });
    it.state.refuse = new ServingError("OVERLOADED", "full");
    await expect(it.ask({ prompt: CRIMSON })).rejects.toThrow("full");
    it.state.refuse = new ServingError("INVALID_REQUEST", "start_latent has another shape");
    expect(await it.ask({ prompt: CRIMSON })).toBe("noise");
    expect(await it.lookups()).toMatchObject({ refused: 1 });
  });

  it("does not begin from what was purged meanwhile, nor is such a one kept", async () => {
    const it = world();
    await it.ask({ prompt: RED });
    it.state.purged = true;
    expect(await it.ask({ prompt: CRIMSON })).toBe("noise");
    expect(it.index.count).toBe(0);
    for (const key of it.latentKeys()) expect(await it.memory.get(key)).toBeUndefined();
  });

  it("does not begin from what is older than its time to live", async () => {
    const it = world();
    await it.ask({ prompt: RED });
    it.clock.advance(60_000);
    expect(await it.ask({ prompt: CRIMSON })).toBe("noise");
  });

  it("begins from what another gateway made, within its tenant", async () => {
    const memory = new MemoryStore(new ManualClock());
    const [one, other] = [world({ memory }), world({ memory })];
    await one.ask({ prompt: RED });
    expect(other.index.count).toBe(1);
    expect(await other.ask({ prompt: CRIMSON }, { tenant: "other" })).toBe("noise");
    expect(await other.ask({ prompt: CRIMSON })).toBe("step 8 of a red mug:1");
  });

  it.each(["", "null", "{}", '{"id":"x","embedding":"AAAA"}', "x".repeat(40_000)])(
    "takes no news that are none: %.20s",
    async (news) => {
      const { memory, index } = world();
      await memory.publish("approximate:entries", news);
      await settle();
      expect(index.count).toBe(0);
    },
  );

  it("keeps no more than the budget: the longest unused goes, and its latents with it", async () => {
    const { ask, memory, index, latentKeys } = world({ bytesMax: 80_000 }); // two latents of 16 KiB each
    await ask({ prompt: RED });
    await ask({ prompt: SHIP });
    await ask({ prompt: CRIMSON }); // begins from the red one, which is of use so
    await ask({ prompt: "a plant" });
    await settle();
    expect(index.count).toBe(2);
    const left = await Promise.all(latentKeys().map(async (key) => (await memory.get(key)) !== undefined));
    expect(left).toEqual([true, true, false, false, true, true]);
  });

  it("leaves the latents of a picture's later passes and of the request's other pictures", async () => {
    const it = world();
    it.state.passing = { phase: 1 };
    await it.ask({ prompt: RED });
    it.state.passing = { imageIndex: 1 };
    await it.ask({ prompt: RED });
    it.state.passing = { modelDigest: "sha256:11" };
    await it.ask({ prompt: RED });
    expect(it.index.count).toBe(0);
  });
});

interface WorldOptions {
  readonly mode?: ApproximateMode;
  readonly memory?: MemoryStore;
  readonly bytesMax?: number;
  /** Steps between checkpoints. */
  readonly every?: number;
}

/** The approximate cache of a gateway, and what makes pictures behind it. */
function world({ mode = "on-request", memory, bytesMax = 10_000_000, every = 1 }: WorldOptions = {}) {
  const clock = new ManualClock(1_000_000);
  const inner = memory ?? new MemoryStore(clock);
  const store = new BreakableStore(inner);
  const latents = new KeptLatents(store);
  const index = new LatentIndex({ clock, bytesMax, onEvicted: (entry) => void latents.delete(entry) });
  const registry = createRegistry("gateway");
  const state = {
    digest: "sha256:00",
    embeds: true,
    purged: false,
    /** What a request with a start fails with. */
    refuse: undefined as ServingError | undefined,
    passing: {} as Partial<PassingLatent>,
  };
  const cache = new ApproximateCache({
    clock,
    mode,
    scope: "tenant",
    ttlMs: 60_000,
    tableOf: (model) => (model === "unlearned" ? [] : TABLE),
    store,
    latents,
    index,
    embeddings: { of: async ({ prompt }) => (state.embeds ? vector(DEGREES[prompt]!) : undefined) },
    modelDigest: () => state.digest,
    purges: { newest: 0, covers: () => state.purged },
    metrics: createApproximateMetrics(registry, index),
  });
  const watched: boolean[] = [];
  return {
    cache,
    clock,
    index,
    memory: inner,
    store,
    state,
    /** Whether checkpoints were asked for, for each picture. */
    watched,
    latentKeys: () => [...store.keys],
    lookups: async () => {
      const { values } = await registry.getSingleMetric("atelier_gateway_approximate_lookups_total")!.get();
      return Object.fromEntries(values.map(({ labels, value }) => [labels["outcome"], value]));
    },
    /** Has a picture made, and tells where it began. */
    ask: async (changes: Partial<ImageRequest>, { tenant = "t", use = {} }: Asking = {}): Promise<string> => {
      const image = imageRequest({ seed: 1, ...changes });
      const limits = {
        order: { priority: "interactive" as const, tenant },
        deadline: Deadline.after(clock, 60_000),
        signal: new AbortController().signal,
      };
      let began = "noise";
      await cache.make(image, limits, { read: true, store: true, approximate: true, ...use }, async (made, within) => {
        const { startLatent } = made;
        if (startLatent !== undefined && state.refuse !== undefined) throw state.refuse;
        if (startLatent !== undefined) began = `step ${startLatent.stepIndex} of ${read(startLatent)}`;
        watched.push(within.onCheckpoint !== undefined);
        for (let step = every; step < made.steps; step += every) {
          within.onCheckpoint?.({ ...passing(made, step), modelDigest: state.digest, ...state.passing });
        }
        return generation(made, state.digest);
      });
      await settle(); // what is kept is kept behind the answer
      return began;
    },
  };
}

interface Asking {
  readonly tenant?: string;
  readonly use?: Partial<CacheUse>;
}

function vector(degrees: number): Float32Array {
  const radians = (degrees * Math.PI) / 180;
  return Float32Array.of(Math.cos(radians), Math.sin(radians));
}

/** A latent that says what it is of, in its bytes. */
function passing({ prompt, seed, width, height }: ImageRequest, stepIndex: number): PassingLatent {
  const shape = { channels: 4, height: height / 8, width: width / 8 };
  const latent = new Uint8Array(4 * shape.channels * shape.height * shape.width);
  new TextEncoder().encodeInto(`${prompt}:${seed}@${stepIndex}|`, latent);
  return { imageIndex: 0, modelDigest: "", phase: 0, stepIndex, ...shape, latent };
}

/** Whose latent it is; it has to be the one of its step. */
function read({ latent, stepIndex }: StartLatent): string {
  const [whose, step] = new TextDecoder().decode(latent).split("|")[0]!.split("@");
  expect(step).toBe(String(stepIndex));
  return whose!;
}

function generation({ seed, startLatent }: ImageRequest, modelDigest: string): Generation {
  return generationOf({ seed, receipt: { modelDigest, reusedSteps: startLatent?.stepIndex ?? 0 } });
}
