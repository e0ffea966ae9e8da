import { ManualClock, type Random, ServingError, seededRandom } from "@atelier/core";
import { type ItemOutcome, JobStatus } from "@atelier/proto";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import type { ItemState, JobRecord } from "../job.ts";
import type { JobNews } from "../ports.ts";
import { type Ending, itemsOf, jobRecord, outcome } from "../testing/job-parts.ts";
import { type SimItem, SimQueue } from "../testing/sim-queue.ts";
import { JobEngine } from "./job-engine.ts";

/** Replays one history: SIM_SEED=17 npx vitest run services/jobs/src/engine/job-engine.sim.test.ts */
const seeds = process.env["SIM_SEED"]
  ? [Number(process.env["SIM_SEED"])]
  : Array.from({ length: 100 }, (_, seed) => seed);

describe("jobs over a queue that fails, workers that die and a service that is killed", () => {
  it.each(seeds)("end with one outcome counted for each item, and none missing (SIM_SEED=%i)", async (seed) => {
    const world = await history(seed);
    for (const record of JOBS) {
      const view = world.engine.get(record.id);
      expect(view !== undefined).toBe(world.queue.records.has(`jobs.${record.id}`));
      if (view === undefined) {
        if (world.confirmed.has(record.id)) expect(world.askedToRemove).toContain(record.id);
        continue;
      }
      expect(world.removed).not.toContain(record.id);
      const truth = foldSlowly(record, world.queue);
      expect(["done", "cancelled"]).toContain(view.status);
      // By the log alone, folded by other code; every item once.
      expect(view.counts).toEqual({ queued: 0, running: 0, ...truth.counts });
      expect(Object.values(view.counts).reduce((sum, count) => sum + count, 0)).toBe(record.itemCount);
      expect(view.spentDeviceMs).toBe(10 * truth.counts.done);
      expect(view.endedAtMs).not.toBeNull();
      // What was made ready before the end knew of every item, also where some were made again.
      if (view.status === "done") expect(world.prepared.get(record.id)).toEqual(view.counts);
      // An end that came while the service was down is not told; none is told twice.
      const ends = world.ends.get(record.id) ?? 0;
      if (world.met.has("the service was killed")) expect(ends).toBeLessThanOrEqual(truth.ends);
      else expect(ends).toBe(truth.ends);
    }
    // Nothing is left for workers to do in vain.
    expect([...world.queue.items.values()].filter(({ item }) => world.engine.get(item.jobId) === undefined)).toEqual(
      [],
    );
    expect(world.slowestCommandMs).toBeLessThanOrEqual(20_000);
    expect(world.wrong).toEqual([]);
  });

  it.each([
    "a call failed and did nothing",
    "a call did its work and its answer was lost",
    "an item was published twice",
    "an event's repeat was dropped",
    "the service was killed",
    "a worker died",
    "a worker died between an outcome and its end in the queue",
    "an outcome came from two workers",
    "the work stream was deleted",
    "items were taken out by hand",
    "pause failed STORAGE_UNAVAILABLE",
    "pause carried out",
    "resume carried out",
    "cancel carried out",
    "cancel failed STORAGE_UNAVAILABLE",
    "priority carried out",
    "retry carried out",
    "remove carried out",
    "a job ended twice",
    "a command was cut off by the service's death",
  ])("really meet '%s' in these seeds", async (event) => {
    if (process.env["SIM_SEED"] !== undefined) return;
    expect(await all).toContain(event);
  });

  it("go the same way twice for one seed", async () => {
    const [once, twice, other] = [await history(7), await history(7), await history(8)];
    expect(once.told).toEqual(twice.told);
    expect(once.told).not.toEqual(other.told);
  });
});

const TICK_MS = 250;
const BAD_TICKS = 120;
const TICKS_MAX = 4_000;
const LEASE_MS = 5_000;
const JOBS = [
  jobRecord({ id: "job_a", itemCount: 40 }),
  jobRecord({ id: "job_b", itemCount: 8, tenant: "other", weight: 3 }),
  jobRecord({ id: "job_c", itemCount: 12, priority: "standard" }),
  jobRecord({ id: "job_d", itemCount: 6 }),
];

/** Half a minute in which everything goes wrong, and then nothing more until all jobs have ended. */
async function history(seed: number) {
  const world = new World(seed);
  for (let tick = 0; tick < TICKS_MAX; tick++) {
    const isBad = tick < BAD_TICKS;
    world.tick(isBad ? 0.06 : 0);
    if (isBad) world.meddle(tick);
    else world.wantAllToEnd();
    world.clock.advance(TICK_MS);
    await new Promise<void>((resolve) => setImmediate(resolve));
    if (!isBad && world.isOver) return world;
  }
  const left = [...world.engine.kept()].map(({ record, status, ledger }) => {
    const { id, wish, deleting } = record;
    return `${id} ${status} (${wish}${deleting ? ", deleting" : ""}) ${JSON.stringify(ledger.counts)} ${ledger.endedAtMs}`;
  });
  throw new Error(`seed ${seed} did not settle: ${world.state}; ${[...left, ...world.queue.items.keys()].join("; ")}`);
}

class World {
  readonly clock = new ManualClock(1_000_000);
  readonly random: Random;
  readonly queue: SimQueue;
  readonly met = new Set<string>();
  readonly told: string[] = [];
  readonly accepted: JobRecord[] = [];
  readonly confirmed = new Set<string>();
  readonly askedToRemove = new Set<string>();
  readonly removed = new Set<string>();
  /** Counts when a job's end was last made ready. */
  readonly prepared = new Map<string, Readonly<Record<ItemState, number>>>();
  /** By the log, as the engines applied it: ends in effect. */
  readonly ends = new Map<string, number>();
  readonly wrong: string[] = [];
  readonly #workers: Worker[];
  readonly #commands = new Set<symbol>();
  #started = false;
  engine!: JobEngine;
  slowestCommandMs = 0;

  constructor(seed: number) {
    this.random = seededRandom(seed);
    const note = (what: string) => void this.met.add(what);
    this.queue = new SimQueue({ clock: this.clock, random: this.random, note });
    this.#workers = [1, 2, 3].map((id) => new Worker(`w${id}`, this));
    this.#start();
  }

  happens(probability: number): boolean {
    return this.random.next() < probability;
  }

  tick(bad: number): void {
    this.queue.bad = bad;
    for (const worker of this.#workers) worker.act(bad > 0);
  }

  /** What owners, operators and bad luck do. */
  meddle(tick: number): void {
    if (this.happens(0.02)) {
      this.met.add("the service was killed");
      if (this.#commands.size > 0) this.met.add("a command was cut off by the service's death");
      this.#start();
    }
    if (this.happens(0.01)) {
      const told = this.happens(0.5);
      this.met.add(told ? "the work stream was deleted" : "items were taken out by hand");
      this.queue.lose({ told });
    }
    if (!this.#started) return;
    const next = JOBS[this.accepted.length];
    if (next !== undefined && tick >= this.accepted.length * 15) this.#accept(next);
    if (this.accepted.length === 0 || !this.happens(0.25)) return;
    const { id } = this.accepted[Math.floor(this.random.next() * this.accepted.length)]!;
    const engine = this.engine;
    const draw = this.random.next();
    if (draw < 0.3) this.#command("pause", engine.pause(id));
    else if (draw < 0.6) this.#command("resume", engine.resume(id));
    else if (draw < 0.8) this.#retry(id);
    else if (draw < 0.93) this.#command("priority", engine.setPriority(id, this.happens(0.5) ? "bulk" : "standard"));
    else if (draw < 0.98) this.#command("cancel", engine.cancel(id));
    else this.#remove(id);
  }

  wantAllToEnd(): void {
    if (!this.#started || this.#commands.size > 0) return;
    for (const { id } of this.accepted) {
      if (this.engine.get(id)?.status === "paused") this.#command("resume", this.engine.resume(id));
    }
  }

  get isOver(): boolean {
    if (!this.#started || this.#commands.size > 0 || this.accepted.length === 0) return false;
    return [...this.engine.kept()].every(({ record, ledger, sequence }) => {
      // A retry that its owner heard had failed may be in the log, and not be read yet.
      const isRead = this.queue.log.every(({ event, sequence: last }) => event.jobId !== record.id || last <= sequence);
      return isRead && !record.deleting && ledger.endedAtMs !== undefined;
    });
  }

  get state(): string {
    const commands = [...this.#commands].map(({ description }) => description);
    return `${this.#started ? "up" : "down"}, ${commands.join(" ") || "no command"}, ${this.engine.trouble ?? "well"}`;
  }

  #start(): void {
    const connection = this.queue.connect();
    this.#started = false;
    this.#commands.clear();
    const count = (id: string) => JOBS.find((job) => job.id === id)!.itemCount;
    this.engine = new JobEngine({
      queue: connection.jobQueue,
      items: itemsOf(count),
      clock: connection.clock,
      log: createLogger("jobs", "silent"),
      beforeEnd: async (id) => {
        const counts = this.engine.get(id)?.counts;
        await new Promise<void>((resolve) => connection.clock.after(1 + this.random.next() * 2_000, resolve));
        if (counts !== undefined) this.prepared.set(id, counts);
      },
      removeObjects: async () => {},
      leaseMs: LEASE_MS,
      keptMs: 1e9,
    });
    const engine = this.engine;
    engine.onChange((news) => this.#hear(news));
    const start = () => {
      engine.start().then(
        () => {
          if (this.engine !== engine) return;
          this.#started = true;
        },
        () => void connection.clock.after(500, start),
      );
    };
    start();
  }

  #hear(news: JobNews): void {
    const { id } = news.job.record;
    if (news.type === "ended") this.ends.set(id, (this.ends.get(id) ?? 0) + 1);
    if (news.type === "progress") return;
    this.told.push(
      `${this.clock.nowMs()} ${id} ${news.type} ${news.type === "item" ? news.itemIndex : news.job.status}`,
    );
  }

  /** One that was stored although nobody heard so is taken back, as the intake does. */
  #accept(record: JobRecord): void {
    this.accepted.push(record);
    this.#command("accept", this.engine.accept(record), (error) => {
      if (error === undefined) this.confirmed.add(record.id);
      else if (error.code === "STORAGE_UNAVAILABLE") this.queue.records.delete(`jobs.${record.id}`);
    });
  }

  #retry(id: string): void {
    const failed = this.engine.states(id)?.in("failed", 0, 3) ?? [];
    const some = failed.length > 0 && this.happens(0.5) ? failed : undefined;
    this.#command("retry", this.engine.retry(id, some));
  }

  #remove(id: string): void {
    this.askedToRemove.add(id);
    this.#command("remove", this.engine.remove(id), (error) => {
      if (error === undefined) this.removed.add(id);
    });
  }

  #command(name: string, result: Promise<unknown>, settled: (error?: ServingError) => void = () => {}): void {
    const command = Symbol(name);
    const sinceMs = this.clock.nowMs();
    this.#commands.add(command);
    const end = (error?: unknown) => {
      this.#commands.delete(command);
      this.slowestCommandMs = Math.max(this.slowestCommandMs, this.clock.nowMs() - sinceMs);
      if (error !== undefined && !(error instanceof ServingError)) throw error;
      const expected = ["CONFLICT", "NOT_FOUND", "STORAGE_UNAVAILABLE"];
      if (error !== undefined && !expected.includes(error.code)) this.wrong.push(`${name}: ${error.message}`);
      this.met.add(error === undefined ? `${name} carried out` : `${name} failed ${error.code}`);
      settled(error);
    };
    result.then(() => end(), end);
  }
}

interface Held {
  readonly id: string;
  readonly entry: SimItem;
  readonly key: symbol;
  stepsDone: number;
}

/** Holds up to three items, and does with them what a worker does, or dies, or is so slow that somebody else has them too. */
class Worker {
  readonly #id: string;
  readonly #world: World;
  #held: Held[] = [];
  #hangsUntilMs = 0;

  constructor(id: string, world: World) {
    this.#id = id;
    this.#world = world;
  }

  act(isBad: boolean): void {
    const { queue, clock, met } = this.#world;
    const nowMs = clock.nowMs();
    if (nowMs < this.#hangsUntilMs) return;
    if (isBad && this.#happens(0.01)) {
      if (this.#held.length > 0) met.add("a worker died");
      this.#held = [];
    }
    // It hangs so long that its leases run out, and goes on as if nothing had been.
    if (isBad && this.#happens(0.01)) this.#hangsUntilMs = nowMs + LEASE_MS * 1.5;
    for (const [id, entry] of queue.items) {
      if (this.#held.length === 3) break;
      if (entry.holder !== undefined && entry.untilMs > nowMs) continue;
      const key = Symbol(id);
      entry.holder = key;
      entry.untilMs = nowMs + LEASE_MS;
      entry.attempts += 1;
      this.#held.push({ id, entry, key, stepsDone: 0 });
    }
    this.#held = this.#held.filter((held) => this.#work(held, isBad));
  }

  /** False once it is done with it. */
  #work({ id, entry, key, stepsDone }: Held, isBad: boolean): boolean {
    const { queue, clock, met } = this.#world;
    const { jobId, itemIndex, round } = entry.item;
    const isOurs = queue.items.get(id)?.holder === key;
    if (isOurs) entry.untilMs = clock.nowMs() + LEASE_MS;
    const held = this.#held.find((other) => other.key === key)!;
    held.stepsDone = stepsDone + 1;
    queue.report({
      $typeName: "atelier.v1.ItemProgress",
      jobId,
      itemIndex,
      round,
      workerId: this.#id,
      stepsDone,
      stepsTotal: 4,
    });
    if (!this.#happens(0.3)) return true;
    const ending: Ending = this.#happens(isBad ? 0.2 : 0.02) ? "failed" : this.#happens(0.05) ? "filtered" : "done";
    if (!isOurs) met.add("an outcome came from two workers");
    queue.append(outcome(itemIndex, ending, { jobId, round, attempts: entry.attempts, atMs: clock.nowMs() }), id);
    if (isBad && this.#happens(0.1)) {
      met.add("a worker died between an outcome and its end in the queue");
      return false;
    }
    if (isOurs) queue.items.delete(id);
    return false;
  }

  #happens(probability: number): boolean {
    return this.#world.happens(probability);
  }
}

/** What a log comes to, written down as plainly as it can be: the first outcome of each item, until a retry queues it again. */
function foldSlowly(record: JobRecord, queue: SimQueue) {
  const items = new Map<number, { state: ItemState; outcome: ItemOutcome | undefined }>();
  let roundSeen = 0;
  const leastRounds = new Map<number, number>();
  let ends = 0;
  let ended = false;
  for (const { event } of queue.log.filter(({ event }) => event.jobId === record.id)) {
    if (event.event.case === "outcome") {
      const { value } = event.event;
      roundSeen = Math.max(roundSeen, value.round);
      if (items.has(value.itemIndex)) continue;
      if (value.result.case === "failed" && value.round < (leastRounds.get(value.itemIndex) ?? 0)) continue;
      items.set(value.itemIndex, { state: value.result.case as ItemState, outcome: value });
    } else if (event.event.case === "change") {
      const { status, retriedItems, retriedItemIndexes } = event.event.value;
      const all = items.size === record.itemCount;
      if ((status === JobStatus.CANCELLED || (status === JobStatus.DONE && all)) && !ended) {
        ended = true;
        ends += 1;
      }
      if (status === JobStatus.CANCELLED) {
        for (let i = 0; i < record.itemCount; i++)
          if (!items.has(i)) items.set(i, { state: "cancelled", outcome: undefined });
      }
      if (retriedItems === 0) continue;
      const failed = [...items].filter(([, { state }]) => state === "failed").map(([index]) => index);
      const asked = retriedItemIndexes.length === 0 ? failed : failed.filter((i) => retriedItemIndexes.includes(i));
      for (const index of asked) {
        items.delete(index);
        leastRounds.set(index, roundSeen + 1);
        ended = false;
      }
      if (asked.length > 0) roundSeen += 1;
    }
  }
  const counts = { done: 0, failed: 0, cancelled: 0, filtered: 0 };
  for (const { state } of items.values()) counts[state as keyof typeof counts] += 1;
  return { counts, ends };
}

/** What the histories of all seeds met. */
const all = (async () => {
  const met = new Set<string>();
  if (process.env["SIM_SEED"] !== undefined) return met;
  for (const seed of seeds) {
    const world = await history(seed);
    for (const event of world.met) met.add(event);
    if ([...world.ends.values()].some((count) => count > 1)) met.add("a job ended twice");
  }
  return met;
})();
