import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { CacheWorld, settle } from "../testing/cache-world.ts";

const MISS = "miss";
const HIT = "hit";

describe("ExactCache", () => {
  it("serves what was made before, with the caller's own id and the seed it was made with", async () => {
    const world = new CacheWorld();
    expect(await world.serve({ seed: 7 })).toEqual({ outcome: MISS, seed: 7 });
    const { outcome, request, generation } = await world.ask({ seed: 7, id: "second" });
    expect([outcome, request.id, request.seed, generation.receipt.seed]).toEqual([HIT, "second", 7, 7]);
    expect(await world.serve({ seed: 8 })).toEqual({ outcome: MISS, seed: 8 });
  });

  it("keeps only what was asked often enough of late", async () => {
    const world = new CacheWorld({ minAsks: 3 });
    const outcomes = [];
    for (let i = 0; i < 4; i++) outcomes.push((await world.serve({ seed: 7 })).outcome);
    expect(outcomes).toEqual([MISS, MISS, MISS, HIT]);
    await world.serve({ seed: 8 });
    await world.serve({ seed: 8 });
    world.clock.advance(120_000);
    expect((await world.serve({ seed: 8 })).outcome).toBe(MISS);
    expect((await world.serve({ seed: 8 })).outcome).toBe(MISS);
  });

  it("counts those who ask at once as so many asks", async () => {
    const world = new CacheWorld({ minAsks: 2 });
    const both = [world.ask({ seed: 7 }), world.ask({ seed: 7 })];
    await settle();
    world.makings[0]!.finish();
    expect((await Promise.all(both)).map(({ outcome }) => outcome)).toEqual([MISS, "shared"]);
    expect((await world.serve({ seed: 7 })).outcome).toBe(HIT);
  });

  it("forgets a result when its time is over, and the longest unused where there is no room", async () => {
    const world = new CacheWorld({ ttlMs: 1_000, bytesMax: 7_000 }); // of which one takes some 2,100
    await world.serve({ seed: 1 });
    world.clock.advance(999);
    expect((await world.serve({ seed: 1 })).outcome).toBe(HIT);
    world.clock.advance(1);
    expect((await world.serve({ seed: 1 })).outcome).toBe(MISS);

    for (const seed of [2, 3]) await world.serve({ seed });
    await world.serve({ seed: 1 });
    await world.serve({ seed: 4 });
    expect((await world.serve({ seed: 1 })).outcome).toBe(HIT);
    expect((await world.serve({ seed: 2 })).outcome).toBe(MISS);
  });

  it("keeps nothing under a bundle's digest that another bundle made, nor what began from another's latent", async () => {
    const world = new CacheWorld();
    const first = world.ask({ seed: 7 });
    await settle();
    world.makings[0]!.finish({ modelDigest: "sha256:ff" });
    expect((await first).outcome).toBe(MISS);
    const second = world.ask({ seed: 7 });
    await settle();
    world.makings[1]!.finish({ reusedSteps: 10 }); // unasked
    expect((await second).outcome).toBe("approximate");
    expect((await world.serve({ seed: 7 })).outcome).toBe(MISS);
    expect((await world.serve({ seed: 7 })).outcome).toBe(HIT);
    const results = await world.registry.metrics();
    for (const outcome of ["other_model", "approximate", "kept"]) {
      expect(results).toMatch(new RegExp(`cache_results_total\\{outcome="${outcome}",.*\\} 1\\n`));
    }
  });

  it("keeps what began from another's latent for those who allow it, and the exact one for everybody", async () => {
    const world = new CacheWorld();
    const allowed = { use: { approximate: true } };
    const first = world.ask({ seed: 7 }, allowed);
    await settle();
    world.makings[0]!.finish({ reusedSteps: 10 });
    await first;
    const again = await world.ask({ seed: 7 }, allowed);
    expect([again.outcome, again.generation.receipt.reusedSteps]).toEqual([HIT, 10]);

    expect((await world.serve({ seed: 7 })).outcome).toBe(MISS);
    const exact = [await world.ask({ seed: 7 }), await world.ask({ seed: 7 }, allowed)];
    expect(exact.map(({ outcome, generation }) => [outcome, generation.receipt.reusedSteps])).toEqual([
      [HIT, 0],
      [HIT, 0],
    ]);
  });

  it("finds nothing of a bundle that was replaced, and something of it again where it is back", async () => {
    const world = new CacheWorld();
    await world.serve({ seed: 7 });
    world.modelDigest = "sha256:01";
    expect((await world.serve({ seed: 7 })).outcome).toBe(MISS);
    world.modelDigest = "sha256:00";
    expect((await world.serve({ seed: 7 })).outcome).toBe(HIT);
    world.modelDigest = undefined; // nobody knows the model
    expect((await world.serve({ seed: 7 })).outcome).toBe("bypass");
  });

  it("never serves a tenant what was made for another, nor lets it wait for that", async () => {
    const world = new CacheWorld();
    const [one, two] = [world.ask({ seed: 7 }, { tenant: "one" }), world.ask({ seed: 7 }, { tenant: "two" })];
    await settle();
    expect(world.makings.map(({ limits }) => limits.order.tenant)).toEqual(["one", "two"]);
    for (const making of world.makings) making.finish();
    expect([(await one).outcome, (await two).outcome]).toEqual([MISS, MISS]);
    expect((await world.serve({ seed: 7 }, { tenant: "three" })).outcome).toBe(MISS);

    const shared = new CacheWorld({ scope: "shared" });
    await shared.serve({ seed: 7 }, { tenant: "one" });
    expect((await shared.serve({ seed: 7 }, { tenant: "two" })).outcome).toBe(HIT);
  });

  it("reads nothing for no-cache and keeps what it makes; does neither for no-store", async () => {
    const world = new CacheWorld();
    await world.serve({ seed: 7 });
    expect((await world.serve({ seed: 7 }, { use: { read: false } })).outcome).toBe("bypass");
    expect((await world.serve({ seed: 8 }, { use: { read: false } })).outcome).toBe("bypass");
    expect((await world.serve({ seed: 8 })).outcome).toBe(HIT);
    const alone = { use: { read: false, store: false } };
    expect((await world.serve({ seed: 9 }, alone)).outcome).toBe("bypass");
    expect((await world.serve({ seed: 9 })).outcome).toBe(MISS);
    const noStore = { use: { store: false } };
    expect((await world.serve({ seed: 10 }, noStore)).outcome).toBe(MISS);
    expect((await world.serve({ seed: 10 }, noStore)).outcome).toBe(MISS);
    expect((await world.serve({ seed: 9 }, noStore)).outcome).toBe(HIT);
  });

  it("lets nobody wait for what is made for one who wants it to itself", async () => {
    const world = new CacheWorld();
    const own = world.ask({ seed: 7 }, { use: { read: false, store: false } });
    const other = world.ask({ seed: 7 });
    await settle();
    expect(world.makings).toHaveLength(2);
    for (const making of world.makings) making.finish();
    expect([(await own).outcome, (await other).outcome]).toEqual(["bypass", MISS]);
  });

  it("lets no one wait for what is less urgent than itself, and others for what is more", async () => {
    const world = new CacheWorld();
    const bulk = world.ask({ seed: 7 }, { priority: "bulk" });
    await settle();
    const interactive = world.ask({ seed: 7 }, { priority: "interactive" });
    const standard = world.ask({ seed: 7 }, { priority: "standard" });
    await settle();
    expect(world.makings.map(({ limits }) => limits.order.priority)).toEqual(["bulk", "interactive"]);
    world.makings[1]!.finish();
    expect([(await interactive).outcome, (await standard).outcome]).toEqual([MISS, "shared"]);
    world.makings[0]!.finish();
    await bulk;
  });

  it("goes on for the others when the first goes away, and makes anew for who comes after all have gone", async () => {
    const world = new CacheWorld();
    const [first, second] = [new AbortController(), new AbortController()];
    const one = world.ask({ seed: 7 }, { signal: first.signal });
    const two = world.ask({ seed: 7 }, { signal: second.signal });
    await settle();
    first.abort(new ServingError("CANCELLED", "gone"));
    await expect(one).rejects.toThrow("gone");
    expect(world.makings[0]!.limits.signal.aborted).toBe(false);
    second.abort(new ServingError("CANCELLED", "gone"));
    await expect(two).rejects.toThrow("gone");
    expect(world.makings[0]!.limits.signal.aborted).toBe(true);
    expect(await world.serve({ seed: 7 })).toEqual({ outcome: MISS, seed: 7 });
  });

  it("shares a failure, and tries again for who comes later", async () => {
    const world = new CacheWorld();
    const both = [world.ask({ seed: 7 }), world.ask({ seed: 7 })];
    await settle();
    world.makings[0]!.fail(new ServingError("WORKER_LOST", "lost"));
    for (const asked of both) await expect(asked).rejects.toMatchObject({ code: "WORKER_LOST" });
    expect((await world.serve({ seed: 7 })).outcome).toBe(MISS);
  });

  it("keeps nothing that was purged while it was made, and lets nobody who comes after the purge wait for it", async () => {
    const world = new CacheWorld();
    const before = world.ask({ seed: 7 });
    await settle();
    await world.cache.purge({ promptPrefix: "a m" });
    const after = world.ask({ seed: 7 });
    await settle();
    expect(world.makings).toHaveLength(2);
    world.makings[0]!.finish();
    expect((await before).outcome).toBe(MISS);
    expect(await world.cache.size()).toMatchObject({ memory: { results: 0 } });
    world.makings[1]!.finish();
    expect((await after).outcome).toBe(MISS);
    expect((await world.serve({ seed: 7 })).outcome).toBe(HIT);
    expect(await world.cache.purge({ promptPrefix: "another" })).toEqual({ inMemory: 0, inRedis: undefined });
    expect(await world.cache.purge({})).toEqual({ inMemory: 1, inRedis: undefined });
  });
});

describe("requests without a seed", () => {
  it("get one of a few results by chance, each made for one of them", async () => {
    const world = new CacheWorld({ variants: 3 });
    const served = [];
    for (let i = 0; i < 60; i++) served.push(await world.serve());
    expect(world.makings).toHaveLength(3);
    const seeds = new Map<number, number>();
    for (const { seed } of served) seeds.set(seed, (seeds.get(seed) ?? 0) + 1);
    expect(seeds.size).toBe(3);
    for (const times of seeds.values()) expect(times).toBeGreaterThan(8);
    expect((await world.serve({ seed: served[0]!.seed })).outcome).toBe(HIT);
  });

  it("get another that is there while the one they drew is made for somebody else", async () => {
    let drawn = 0;
    const world = new CacheWorld({ variants: 2, random: { next: () => drawn } });
    const { seed } = await world.serve();
    drawn = 0.5;
    const waits = world.ask();
    await settle();
    expect(world.makings).toHaveLength(2);
    const others = await Promise.all([world.ask(), world.ask(), world.ask()]);
    expect(others.map(({ outcome, request }) => [outcome, request.seed])).toEqual(Array(3).fill([HIT, seed]));
    world.makings[1]!.finish();
    const { outcome, request } = await waits;
    expect(outcome).toBe(MISS);
    expect(request.seed).not.toBe(seed);
    expect(await world.serve()).toEqual({ outcome: HIT, seed: request.seed });
  });

  it("wait together where there is none yet", async () => {
    const world = new CacheWorld({ variants: 1 });
    const both = [world.ask(), world.ask()];
    await settle();
    world.makings[0]!.finish();
    expect((await Promise.all(both)).map(({ outcome }) => outcome)).toEqual([MISS, "shared"]);
  });

  it("count as asks for one thing, whichever variant they draw", async () => {
    const draws = [0, 0.5];
    const world = new CacheWorld({ minAsks: 2, variants: 2, random: { next: () => draws.shift()! } });
    expect((await world.serve()).seed).not.toBe((await world.serve()).seed);
    expect(await world.cache.size()).toMatchObject({ memory: { results: 1 } });
  });

  it("are each new with no-cache, and where there are to be no variants", async () => {
    const world = new CacheWorld({ variants: 1 });
    const first = await world.serve();
    const refreshed = await world.serve({}, { use: { read: false } });
    expect(refreshed.outcome).toBe("bypass");
    expect(refreshed.seed).not.toBe(first.seed);

    const without = new CacheWorld({ variants: 0 });
    const seeds = [await without.serve(), await without.serve()];
    expect(seeds.map(({ outcome }) => outcome)).toEqual([MISS, MISS]);
    expect(seeds[0]!.seed).not.toBe(seeds[1]!.seed);
    expect(await without.cache.size()).toMatchObject({ memory: { results: 0 } });
  });

  it("get other results with other pictures to start from, and the same number of pictures as they ask for", async () => {
    const world = new CacheWorld({ variants: 1 });
    const seeds = [
      await world.serve(),
      await world.serve({ numImages: 3 }),
      await world.serve({ initPicture: { bytes: Uint8Array.of(1), strength: 0.5 } }),
      await world.serve({ initPicture: { bytes: Uint8Array.of(2), strength: 0.5 } }),
    ].map(({ seed }) => seed);
    expect(new Set(seeds).size).toBe(4);
    expect(world.makings.map(({ image }) => image.numImages)).toEqual([1, 3, 1, 1]);
  });
});
