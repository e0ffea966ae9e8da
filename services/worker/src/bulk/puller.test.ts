import { setTimeout as sleep } from "node:timers/promises";
import { type Clock, ManualClock, ServingError, seededRandom, systemClock } from "@atelier/core";
import { type DenoiseState, DenoiseStateSchema, PriorityClass, ReceiptSchema, type WorkItem } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { WorkerView } from "./bulk-work.ts";
import type { MadeItem, Making } from "./item-maker.ts";
import { Puller, type PullerObserver, type PullerOptions } from "./puller.ts";
import { item, JOB, openStorage, type Storage } from "./testing/items.ts";

const FULL = new ServingError("STORAGE_UNAVAILABLE", "no space left on the device");
const LEASE_MS = 1000;

describe("a puller", () => {
  let storage: Storage;
  const pullers: Puller[] = [];

  beforeEach(async () => {
    storage = await openStorage({ leaseMs: LEASE_MS });
  });
  afterEach(async () => {
    for (const puller of pullers.splice(0)) {
      puller.leave();
      await puller.settled();
    }
    await storage.close();
  });

  it("sees a thousand items through, each once, and never has more than it may", async () => {
    const world = start({ make: async () => sleep(1, PICTURE) }, { heldMax: 32 });
    let most = 0;
    const watching = setInterval(() => {
      most = Math.max(most, world.puller.state.held);
    }, 1);
    await storage.queue.work.publish(Array.from({ length: 1000 }, (_, i) => item(i)));
    const outcomes = await storage.ended(1000);
    clearInterval(watching);
    expect(new Set(outcomes.map(({ itemIndex }) => itemIndex)).size).toBe(1000);
    expect(outcomes.every(({ result }) => result.case === "done")).toBe(true);
    expect(most).toBeLessThanOrEqual(32);
    expect(most).toBeGreaterThan(16);
    await world.empty();
    expect(await storage.queue.work.depths()).toEqual([]);
  });

  it("makes standard items before bulk ones that were there first", async () => {
    await storage.queue.work.publish([item(0), item(1), item(2, { priorityClass: PriorityClass.STANDARD })]);
    const { made } = start({}, { view: viewOf({ sideBySide: 1 }), heldMax: 1 });
    await storage.ended(3);
    expect(made.map(({ itemIndex }) => itemIndex)).toEqual([2, 0, 1]);
  });

  it("pulls nothing while requests fill the step batches, and begins when they do not", async () => {
    let requestsDenoising = 8;
    await storage.queue.work.publish([item(0)]);
    const { puller, made } = start({}, { view: () => ({ ...viewOf()(), requestsDenoising }) });
    await sleep(300);
    expect(made).toEqual([]);
    requestsDenoising = 7;
    puller.wake();
    await storage.ended(1);
  });

  it("reports where an item stands twice a second, also while it stands still", async () => {
    const heard: unknown[] = [];
    storage.queue.work.onProgress(({ itemIndex, stepsDone, stepsTotal, workerId }) =>
      heard.push({ itemIndex, stepsDone, stepsTotal, workerId }),
    );
    const make = async (_: WorkItem, { onProgress }: Making) => {
      for (let done = 1; done <= 20; done++) onProgress({ done, total: 30 });
      return sleep(1700, PICTURE);
    };
    await storage.queue.work.publish([item(3)]);
    start({ make });
    await storage.ended(1);
    expect(heard.length).toBeGreaterThanOrEqual(2);
    expect(heard.length).toBeLessThanOrEqual(4);
    expect(heard.at(-1)).toEqual({ itemIndex: 3, stepsDone: 20, stepsTotal: 30, workerId: "w1" });
  });

  it("keeps an item for as long as it takes: its lease is extended", async () => {
    await storage.queue.work.publish([item(0)]);
    const { made } = start({ make: async () => sleep(3 * LEASE_MS, PICTURE) });
    const [outcome] = await storage.ended(1);
    expect(outcome!.attempts).toBe(1);
    expect(made).toHaveLength(1);
  });

  it("stops working on an item whose job is withdrawn, and writes nothing of it", async () => {
    await storage.queue.work.publish([item(0)]);
    const { made, ends } = start({ make: (_, { signal }) => aborted(signal) });
    await until(() => made.length === 1);
    await storage.queue.work.withdraw(JOB, { stop: true });
    await until(() => ends.length === 1);
    expect(ends).toEqual(["lost"]);
    expect(await storage.store.head(item(0).objectKey)).toBeUndefined();
    expect(await storage.outcomes()).toEqual([]);
  });

  it("writes nothing of an item that was lost in the very moment in which it was made", async () => {
    await storage.queue.work.publish([item(0)]);
    const { ends } = start({
      make: async (_, { signal }) => {
        await storage.queue.work.withdraw(JOB, { stop: true });
        await aborted(signal).catch(() => {});
        return PICTURE;
      },
    });
    await until(() => ends.length === 1);
    expect(ends).toEqual(["lost"]);
    expect(await storage.store.head(item(0).objectKey)).toBeUndefined();
    expect(await storage.outcomes()).toEqual([]);
  });

  it("tells nothing of an item that was lost while its picture was stored", async () => {
    const store = replaced(storage.store, {
      put: async (key, bytes) => {
        await storage.queue.work.withdraw(JOB, { stop: true });
        await until(() => lost);
        return storage.store.put(key, bytes);
      },
    });
    let lost = false;
    await storage.queue.work.publish([item(0)]);
    const make = async (_: WorkItem, { signal }: Making) => {
      signal.addEventListener("abort", () => {
        lost = true;
      });
      return PICTURE;
    };
    const { ends } = start({ make }, { store });
    await until(() => ends.length === 1);
    expect(ends).toEqual(["lost"]);
    expect(await storage.outcomes()).toEqual([]);
  });

  it("gives its items up for a request that needs the memory, which is no fault of theirs", async () => {
    let crowded = false;
    await storage.queue.work.publish([item(0)]);
    const { puller, made, ends } = start(
      { make: async (_, { signal }) => (made.length === 1 ? aborted(signal) : PICTURE) },
      { view: () => ({ ...viewOf()(), crowded }) },
    );
    await until(() => made.length === 1);
    crowded = true;
    puller.wake();
    await until(() => ends.length === 1);
    expect(ends).toEqual(["handed_back"]);
    crowded = false;
    const [outcome] = await storage.ended(1);
    expect(outcome).toMatchObject({ attempts: 1, result: { case: "done" } });
  }, 20_000);

  describe("an item that fails", () => {
    it("in a way that another try would not mend ends at once, and says why", async () => {
      await storage.queue.work.publish([item(0)]);
      const { made } = start({ make: failing("INVALID_REQUEST", "steps 0: a whole number within 1..150") });
      const [outcome] = await storage.ended(1);
      expect(outcome).toMatchObject({
        attempts: 1,
        result: {
          case: "failed",
          value: { code: "INVALID_REQUEST", message: "steps 0: a whole number within 1..150", deadLetter: false },
        },
      });
      await sleep(100);
      expect(made).toHaveLength(1);
      expect(await letters()).toEqual([]);
    });

    it("in a way that another try may mend is tried again", async () => {
      await storage.queue.work.publish([item(0)]);
      let tries = 0;
      start({
        make: async () => {
          if (++tries === 1) throw new ServingError("OUT_OF_MEMORY", "no room");
          return PICTURE;
        },
      });
      const [outcome] = await storage.ended(1);
      expect(outcome).toMatchObject({ attempts: 2, result: { case: "done" } });
    });

    it("as often as an item may lies among the dead letters", async () => {
      await storage.queue.work.publish([item(0)]);
      start({ make: failing("OUT_OF_MEMORY", "no room") }, { attemptsMax: 2 });
      const [outcome] = await storage.ended(1);
      expect(outcome).toMatchObject({
        attempts: 2,
        result: { case: "failed", value: { code: "OUT_OF_MEMORY", message: "no room", deadLetter: true } },
      });
      await until(async () => (await letters()).length === 1);
      expect(await letters()).toMatchObject([{ code: "OUT_OF_MEMORY", attempts: 2, workerId: "w1" }]);
    });

    it("is not even begun where it was delivered as often as it may and never came to an end", async () => {
      await storage.queue.work.publish([item(0)]);
      const lane = { priorityClass: PriorityClass.BULK, model: "atelier-tiny" };
      for (let i = 0; i < 2; i++) {
        // As of a worker that was killed: nothing is heard of it any more.
        const [lease] = await storage.queue.work.pull({ ...lane, max: 1, waitMs: 5000 });
        expect(lease!.attempt).toBe(i + 1);
        await new Promise((resolve) => lease!.lost.addEventListener("abort", resolve));
      }
      const { made } = start({}, { attemptsMax: 2 });
      const [outcome] = await storage.ended(1);
      expect(outcome).toMatchObject({ attempts: 2, result: { case: "failed", value: { deadLetter: true } } });
      expect(outcome!.result.value).toHaveProperty("message", expect.stringContaining("never finished"));
      expect(made).toEqual([]);
      await until(async () => (await letters()).length === 1);
    });

    it("by a bug counts as a try, and does not take the others with it", async () => {
      await storage.queue.work.publish([item(0), item(1)]);
      start(
        {
          make: async ({ itemIndex }) => {
            if (itemIndex === 0) throw new TypeError("undefined is not a function");
            return PICTURE;
          },
        },
        { attemptsMax: 1 },
      );
      const outcomes = await storage.ended(2);
      const failed = outcomes.find(({ itemIndex }) => itemIndex === 0);
      expect(failed).toMatchObject({ result: { case: "failed", value: { code: "INTERNAL" } } });
    });
  });

  describe("while the store is full", () => {
    it("keeps what it made and pulls nothing; when it is mended it stores that, and goes on", async () => {
      let full = true;
      const store = replaced(storage.store, {
        put: (...of: Parameters<Storage["store"]["put"]>) => (full ? Promise.reject(FULL) : storage.store.put(...of)),
        check: () => (full ? Promise.reject(FULL) : storage.store.check()),
      });
      await storage.queue.work.publish(Array.from({ length: 12 }, (_, i) => item(i)));
      const { made, puller, pauses } = start({}, { store, view: viewOf({ sideBySide: 2 }) });
      await until(() => pauses.length > 0);
      await sleep(1500);
      const madeWhileFull = made.length;
      expect(madeWhileFull).toBeLessThan(12);
      expect(puller.state.paused).toEqual(["store"]);
      expect(await storage.outcomes()).toEqual([]);
      full = false;
      const outcomes = await storage.ended(12);
      expect(outcomes.every(({ attempts, result }) => attempts === 1 && result.case === "done")).toBe(true);
      expect(made).toHaveLength(12); // none was made twice
      await until(() => puller.state.paused.length === 0);
    }, 30_000);

    it("lets go of an item in the end, which does not count as a try", async () => {
      const clock = new ManualClock(Date.now());
      const away = () => Promise.reject(FULL);
      const store = replaced(storage.store, { put: away, check: away });
      await storage.queue.work.publish([item(0)]);
      const { ends } = start({}, { store, clock });
      await until(() => {
        clock.advance(200);
        return ends.length === 1;
      });
      expect(ends).toEqual(["handed_back"]);
      const lane = { priorityClass: PriorityClass.BULK, model: "atelier-tiny" };
      const [lease] = await storage.queue.work.pull({ ...lane, max: 1, waitMs: 5000 });
      expect(lease!.attempt).toBe(1);
    }, 20_000);
  });

  it("tells how an item ended once, when the queue answers again", async () => {
    let away = 3;
    const events = replaced(storage.queue.events, {
      append: (...of) => (away-- > 0 ? Promise.reject(FULL) : storage.queue.events.append(...of)),
    });
    await storage.queue.work.publish([item(0)]);
    const { ends, made } = start({}, { queue: { work: storage.queue.work, events } });
    await until(() => ends.length === 1);
    expect(ends).toEqual(["done"]);
    expect(await storage.outcomes()).toHaveLength(1);
    expect(made).toHaveLength(1);
  });

  it("asks again, later and later, for what the queue does not give, and goes on when it answers", async () => {
    let asks = 0;
    let away = true;
    const work = replaced(storage.queue.work, {
      pull: (ask) => {
        asks += 1;
        return away ? Promise.reject(FULL) : storage.queue.work.pull(ask);
      },
    });
    await storage.queue.work.publish([item(0)]);
    const { pauses } = start({}, { queue: { work, events: storage.queue.events } });
    await sleep(2000);
    expect(asks).toBeLessThan(8);
    expect(pauses.length).toBeGreaterThan(1);
    away = false;
    await storage.ended(1);
  });

  describe("that leaves", () => {
    it("hands what it cannot finish back with where it stands; the next goes on from there, and takes it away", async () => {
      const state = create(DenoiseStateSchema, { schemaVersion: 1, stepIndex: 3 });
      await storage.queue.work.publish([item(0)]);
      const left = Promise.withResolvers<MadeItem>();
      const first = start({
        make: (_, { onState }) => {
          onState(state);
          return left.promise;
        },
      });
      await until(() => first.made.length === 1);
      first.puller.stop();
      first.puller.leave();
      left.reject(new ServingError("DRAINING", "leaving"));
      await first.puller.settled();
      expect(first.ends).toEqual(["handed_back"]);
      expect(await storage.store.head(`jobs/${JOB}/checkpoints/0.state`)).toBeDefined();

      const resumed: (DenoiseState | undefined)[] = [];
      const second = start({
        make: async (_, { resume }) => {
          resumed.push(resume);
          return PICTURE;
        },
      });
      const [outcome] = await storage.ended(1);
      expect(outcome!.attempts).toBe(1);
      expect(resumed).toMatchObject([{ stepIndex: 3 }]);
      await until(() => second.ends.length === 1);
      expect(await storage.store.head(`jobs/${JOB}/checkpoints/0.state`)).toBeUndefined();
    });

    it("pulls nothing more from the moment it is told to", async () => {
      const { puller, made } = start({ make: async () => sleep(50, PICTURE) }, { view: viewOf({ sideBySide: 1 }) });
      await storage.queue.work.publish(Array.from({ length: 20 }, (_, i) => item(i)));
      await until(() => made.length > 2);
      puller.stop();
      await puller.settled();
      const then = made.length;
      await sleep(200);
      expect(made).toHaveLength(then);
      expect(await storage.outcomes()).toHaveLength(then);
      const [depth] = await storage.queue.work.depths();
      expect(depth).toMatchObject({ waiting: 20 - then, held: 0 });
    });

    it("does not wait for a store that is away", async () => {
      const store = replaced(storage.store, { put: () => Promise.reject(FULL) });
      await storage.queue.work.publish([item(0)]);
      const { puller, ends, pauses } = start({}, { store });
      await until(() => pauses.length > 0);
      puller.leave();
      await puller.settled();
      expect(ends).toEqual(["handed_back"]);
    });

    it("begins anew from what is no state", async () => {
      await storage.store.put(`jobs/${JOB}/checkpoints/0.state`, Buffer.from("not a state at all"));
      await storage.queue.work.publish([item(0)]);
      const resumed: unknown[] = [];
      start({
        make: async (_, { resume }) => {
          resumed.push(resume);
          return PICTURE;
        },
      });
      await storage.ended(1);
      expect(resumed).toEqual([undefined]);
    });
  });

  function start(
    { make = async () => PICTURE }: { make?: (item: WorkItem, how: Making) => Promise<MadeItem> },
    change: Partial<PullerOptions> & { clock?: Clock } = {},
  ) {
    const made: WorkItem[] = [];
    const ends: string[] = [];
    const pauses: string[] = [];
    const observer: PullerObserver = {
      pulled: () => {},
      took: () => {},
      ended: (end) => ends.push(end),
      waited: () => {},
      paused: (pillar) => pauses.push(pillar),
      wentOn: () => {},
      notMade: () => {},
    };
    const puller = new Puller({
      queue: storage.queue,
      store: storage.store,
      maker: {
        make: (of, how) => {
          made.push(of);
          return make(of, how);
        },
      },
      view: viewOf(),
      clock: systemClock,
      random: seededRandom(1),
      workerId: "w1",
      attemptsMax: 5,
      heldMax: 32,
      observer,
      ...change,
    });
    pullers.push(puller);
    puller.start();
    return { puller, made, ends, pauses, empty: () => until(() => puller.state.held === 0) };
  }

  async function letters() {
    const found = [];
    for await (const letter of storage.queue.work.deadLetters(JOB)) found.push(letter);
    return found;
  }
});

const PICTURE: MadeItem = {
  bytes: Buffer.from("a picture"),
  mediaType: "image/png",
  receipt: create(ReceiptSchema, { workerId: "w1" }),
};

function failing(code: "INVALID_REQUEST" | "OUT_OF_MEMORY", message: string): () => Promise<MadeItem> {
  return async () => {
    throw new ServingError(code, message);
  };
}

function viewOf({ sideBySide = 8 } = {}): () => WorkerView {
  const model = { id: "atelier-tiny", resident: true, fits: true, loadMs: 1000, sideBySide };
  return () => ({ models: [model], requestsDenoising: 0, crowded: false });
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const end = () => reject(signal.reason);
    if (signal.aborted) end();
    signal.addEventListener("abort", end);
  });
}

/** The same but for these methods. */
function replaced<Port extends object>(port: Port, methods: Partial<Port>): Port {
  return new Proxy(port, {
    get: (_, name) => {
      const value = methods[name as keyof Port] ?? port[name as keyof Port];
      return typeof value === "function" ? value.bind(port) : value;
    },
  });
}

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await sleep(5);
}
