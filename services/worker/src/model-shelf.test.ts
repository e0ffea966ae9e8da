import { setImmediate } from "node:timers/promises";
import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { latentShape } from "@atelier/diffusion";
import { describe, expect, it } from "vitest";
import { MemoryBudget, type ModelMemory } from "./memory/memory-budget.ts";
import { type Claim, ModelShelf } from "./model-shelf.ts";

describe("ModelShelf", () => {
  it("loads what a request asks for, and tells how far it is, never going back", async () => {
    const { shelf, io, clock, place } = shelfOf({ room: 1 });
    expect(place("a")).toMatchObject({ status: "on-disk", progress: 0, error: undefined });
    const claim = await shelf.claim("a", DEMAND);
    const seen: number[] = [];
    const look = () => seen.push(place("a").progress);
    look();
    clock.advance(1000);
    look();
    io.opened("a", MODEL_BYTES / 2);
    look();
    clock.advance(60_000 / 4);
    look();
    io.opened("a", MODEL_BYTES / 2);
    look();
    expect(seen).toEqual(seen.toSorted((x, y) => x - y));
    expect(new Set(seen).size).toBe(5);
    expect(seen.at(-1)).toBeLessThan(1);

    io.finish("a");
    await claim.ready(ALWAYS(clock));
    expect(place("a")).toMatchObject({ status: "resident", progress: 1 });
  });

  it("begins one load for all who ask, and lets them go on together", async () => {
    const { shelf, io, clock } = shelfOf({ room: 1 });
    const claims = await Promise.all([shelf.claim("a", DEMAND), shelf.claim("a", DEMAND), shelf.claim("a", DEMAND)]);
    const ready = Promise.all(claims.map((claim) => claim.ready(ALWAYS(clock))));
    io.finish("a");
    await ready;
    expect(io.log).toEqual(["open a"]);
  });

  it("loads two models beside one another where there is room", async () => {
    const { io, load } = shelfOf({ room: 2 });
    await Promise.all([load("a"), load("b")]);
    expect(io.log).toEqual(["open a", "open b"]);
  });

  it("evicts the idle model that was not used for the longest time", async () => {
    const { shelf, io, load, clock, statuses } = shelfOf({ room: 2 });
    for (const id of ["a", "b", "a"]) {
      clock.advance(1000);
      (await load(id)).release();
    }
    await load("c");
    expect(io.log).toEqual(["open a", "open b", "close b", "open c"]);
    expect(statuses()).toEqual({ a: "resident", b: "on-disk", c: "resident" });
    await shelf.settled();
  });

  it("never evicts a model that is in use: the request is refused, and what is there is named", async () => {
    const { shelf, load, io, statuses } = shelfOf({ room: 2 });
    await load("a");
    await load("b");
    await expect(shelf.claim("c", DEMAND)).rejects.toMatchObject({
      code: "OVERLOADED",
      detail: expect.stringMatching(/^no room for model "c" beside what is in use: .* in memory: a, b$/),
    });
    expect(io.log).toEqual(["open a", "open b"]);
    expect(statuses()).toEqual({ a: "resident", b: "resident", c: "on-disk" });
  });

  it("makes room for a larger request of a model that is resident", async () => {
    const { shelf, load, io } = shelfOf({ room: 2 });
    const first = await load("a");
    (await load("b")).release();
    const larger = { ...DEMAND, shape: latentShape({ width: 384, height: 384 }) };
    const claim = await shelf.claim("a", larger);
    expect(io.log).toEqual(["open a", "open b", "close b"]);
    for (const { release } of [first, claim]) release();
  });

  it("never lets two claims count on the same room", async () => {
    const { shelf, load, io } = shelfOf({ room: 2 });
    await load("a");
    (await load("b")).release();
    const outcomes = await Promise.allSettled([shelf.claim("c", DEMAND), shelf.claim("d", DEMAND)]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
    expect(io.log).toEqual(["open a", "open b", "close b", "open c"]);
  });

  it("refuses at once what never fits, and touches nothing", async () => {
    const { shelf, load, io } = shelfOf({ room: 1 });
    (await load("a")).release();
    const huge = { ...DEMAND, shape: latentShape({ width: 1024, height: 1024 }) };
    await expect(shelf.claim("b", huge)).rejects.toMatchObject({ code: "INVALID_REQUEST", field: "width" });
    await expect(shelf.claim("nobody", DEMAND)).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
    expect(io.log).toEqual(["open a"]);
  });

  it("says of every load how it ended and after how long, once", async () => {
    const { shelf, io, clock, loads } = shelfOf({ room: 3 });
    const [good, bad, late] = await Promise.all(["a", "b", "c"].map((id) => shelf.claim(id, DEMAND)));
    const told = Promise.allSettled([good, bad, late].map((claim) => claim!.ready(ALWAYS(clock))));
    clock.advance(1_500);
    io.finish("a");
    io.fail("b", new ServingError("OUT_OF_MEMORY", "full"));
    await setImmediate();
    clock.advance(3_600_000);
    io.finish("c");
    await told;
    await shelf.settled();
    expect(loads.slice(0, 2)).toEqual([
      ["a", 1_500, undefined],
      ["b", 1_500, "OUT_OF_MEMORY"],
    ]);
    expect(loads.slice(2)).toEqual([["c", expect.any(Number), "DEADLINE_EXCEEDED"]]);
  });

  describe("when a load fails", () => {
    it("tells everyone who waits and everyone who looks, and keeps nothing", async () => {
      const { shelf, io, clock, place, budget } = shelfOf({ room: 1 });
      const claims = await Promise.all([shelf.claim("a", DEMAND), shelf.claim("a", DEMAND)]);
      const told = Promise.allSettled(claims.map((claim) => claim.ready(ALWAYS(clock))));
      io.fail("a", new ServingError("INVALID_BUNDLE", "unet/model.onnx: broken"));
      for (const outcome of await told) expect(outcome).toMatchObject({ reason: { code: "INVALID_BUNDLE" } });
      expect(place("a")).toMatchObject({ status: "on-disk", error: { detail: "unet/model.onnx: broken" } });
      expect(budget.usedBytes).toBe(0);
    });

    it("waits before it tries again, longer after each failure, unless it is told to load", async () => {
      const { shelf, io, clock, load, place } = shelfOf({ room: 1 });
      const failOnce = async () => {
        const claim = await shelf.claim("a", DEMAND);
        const told = claim.ready(ALWAYS(clock)).catch(() => claim.release());
        io.fail("a", new ServingError("OUT_OF_MEMORY", "full"));
        await told;
      };
      await failOnce();
      await expect(shelf.claim("a", DEMAND)).rejects.toMatchObject({
        code: "OUT_OF_MEMORY",
        detail: "full (it may be tried again in 1 s)",
      });
      clock.advance(1000);
      await failOnce();
      clock.advance(1000);
      await expect(shelf.claim("a", DEMAND)).rejects.toThrow("it may be tried again in 1 s");
      clock.advance(1000);
      const claim = await load("a");
      expect(place("a").error).toBeUndefined();
      claim.release();
      await shelf.unload("a");

      await failOnce();
      const loaded = shelf.load("a", ALWAYS(clock));
      await io.begun("a");
      io.finish("a");
      await loaded;
      expect(place("a").status).toBe("resident");
    });

    it("gives up a load at its deadline, still counts it, and releases it when it ends after all", async () => {
      const { shelf, io, clock, place, budget } = shelfOf({ room: 1 });
      const claim = await shelf.claim("a", DEMAND);
      const told = claim.ready(ALWAYS(clock));
      clock.advance(30_000 + 20_000 * (MODEL_BYTES / 2 ** 30));
      await expect(told).rejects.toMatchObject({
        code: "DEADLINE_EXCEEDED",
        detail: expect.stringMatching(/model "a"/),
      });
      claim.release();
      expect(place("a").status).toBe("unloading");
      expect(budget.usedBytes).toBeGreaterThan(0);
      await expect(shelf.claim("a", DEMAND)).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });

      io.finish("a");
      await shelf.settled();
      expect(io.log).toEqual(["open a", "close a"]);
      expect(place("a")).toMatchObject({ status: "on-disk", error: { code: "DEADLINE_EXCEEDED" } });
      expect(budget.usedBytes).toBe(0);
    });
  });

  describe("a request that waits for a load", () => {
    it("can be taken back; the load goes on for the others", async () => {
      const { shelf, io, clock } = shelfOf({ room: 1 });
      const abort = new AbortController();
      const [first, second] = await Promise.all([shelf.claim("a", DEMAND), shelf.claim("a", DEMAND)]);
      const takenBack = first.ready({ ...ALWAYS(clock), signal: abort.signal });
      const stays = second.ready(ALWAYS(clock));
      abort.abort(new ServingError("CANCELLED", "taken back"));
      await expect(takenBack).rejects.toMatchObject({ code: "CANCELLED" });
      io.finish("a");
      await stays;
    });

    it("ends with its own deadline", async () => {
      const { shelf, clock, place } = shelfOf({ room: 1 });
      const claim = await shelf.claim("a", DEMAND);
      const told = claim.ready({ ...ALWAYS(clock), deadline: Deadline.after(clock, 500) });
      clock.advance(500);
      await expect(told).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
      expect(place("a").status).toBe("loading");
    });
  });

  describe("asked to unload", () => {
    it("refuses while requests are in flight, naming how many", async () => {
      const { shelf, load } = shelfOf({ room: 1 });
      const first = await load("a");
      const second = await shelf.claim("a", DEMAND);
      await expect(shelf.unload("a")).rejects.toMatchObject({
        code: "OVERLOADED",
        detail: 'model "a" is in use: 2 requests are in flight',
      });
      for (const { release } of [first, second]) release();
      expect(await shelf.unload("a")).toBeGreaterThan(MODEL_BYTES);
      expect(await shelf.unload("a")).toBe(0);
      expect(() => shelf.unload("nobody")).toThrow(/MODEL_NOT_FOUND/);
    });

    it("refuses while the model is being loaded", async () => {
      const { shelf } = shelfOf({ room: 1 });
      await shelf.claim("a", DEMAND);
      await expect(shelf.unload("a")).rejects.toThrow('model "a" is being loaded');
    });
  });

  it("tells of every change, and of a load's progress while nothing else changes", async () => {
    const { shelf, clock, changes } = shelfOf({ room: 1 });
    await shelf.claim("a", DEMAND);
    const before = changes();
    clock.advance(1000);
    expect(changes()).toBe(before + 4);
  });
});

const DEMAND = { shape: latentShape({ width: 256, height: 256 }), rows: 2, images: 1 };
const MODEL_BYTES = 300 * 2 ** 20;

/** A shelf over "a" to "d", of one size, with room for so many of them. */
function shelfOf({ room }: { room: number }) {
  const files = { textEncoder: 0, unet: MODEL_BYTES, vaeDecoder: 0, vaeEncoder: 0 };
  const models: ModelMemory[] = ["a", "b", "c", "d"].map((id) => ({
    id,
    family: "sdxl",
    files,
    latentChannels: 4,
    nativeSize: { width: 256, height: 256 },
    sizeMultiple: 8,
    sizeMin: 64,
    sizeMax: 1024,
  }));
  const measure = new MemoryBudget({ budgetBytes: Infinity, models, narrowLanesMax: 0, decoderSessions: 1 });
  measure.hold("a", DEMAND);
  const budget = new MemoryBudget({
    budgetBytes: room * measure.usedBytes,
    models,
    narrowLanesMax: 0,
    decoderSessions: 1,
  });
  const clock = new ManualClock();
  const io = fakeIo();
  let changes = 0;
  const loads: unknown[] = [];
  const shelf = new ModelShelf({
    models: models.map(({ id }) => ({ id, fileBytes: MODEL_BYTES })),
    budget,
    io,
    clock,
    onChange: () => {
      changes += 1;
    },
    onLoadEnded: (id, ms, failure) => loads.push([id, ms, failure?.code]),
  });
  return {
    shelf,
    budget,
    clock,
    io,
    place: (id: string) => shelf.places.find((place) => place.id === id)!,
    statuses: () =>
      Object.fromEntries(shelf.places.filter(({ id }) => id !== "d").map(({ id, status }) => [id, status])),
    changes: () => changes,
    loads,
    async load(id: string): Promise<Claim> {
      const claim = await shelf.claim(id, DEMAND);
      io.finish(id);
      await claim.ready(ALWAYS(clock));
      return claim;
    },
  };
}

const ALWAYS = (clock: ManualClock) => ({
  signal: new AbortController().signal,
  deadline: Deadline.after(clock, 3_600_000),
});

/** Loads that end when the test says so. */
function fakeIo() {
  const log: string[] = [];
  const loads = new Map<string, { onOpened: (bytes: number) => void; end: PromiseWithResolvers<void> }>();
  const begun = new Map<string, PromiseWithResolvers<void>>();
  return {
    log,
    open(id: string, onOpened: (bytes: number) => void): Promise<void> {
      log.push(`open ${id}`);
      const end = Promise.withResolvers<void>();
      loads.set(id, { onOpened, end });
      begun.get(id)?.resolve();
      return end.promise;
    },
    async close(id: string): Promise<void> {
      log.push(`close ${id}`);
    },
    /** Resolves at the next load. */
    begun(id: string): Promise<void> {
      const next = Promise.withResolvers<void>();
      begun.set(id, next);
      return next.promise;
    },
    opened: (id: string, bytes: number) => loads.get(id)?.onOpened(bytes),
    finish: (id: string) => loads.get(id)?.end.resolve(),
    fail: (id: string, error: ServingError) => loads.get(id)?.end.reject(error),
  };
}
