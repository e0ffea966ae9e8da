import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, ManualClock, ServingError, seededRandom, systemClock } from "@atelier/core";
import { type JobQueue, type Lease, openJobQueue } from "@atelier/job-queue";
import { JobStatus, PriorityClass } from "@atelier/proto";
import { createLogger } from "@atelier/telemetry";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import type { JobRecord } from "../job.ts";
import type { ItemSource } from "../ports.ts";
import { change, type Ending, itemsOf, jobRecord, outcome } from "../testing/job-parts.ts";
import { SimQueue } from "../testing/sim-queue.ts";
import { JobEngine } from "./job-engine.ts";

describe("JobEngine on a queue file", () => {
  let folder: string;
  let queue: JobQueue;
  const engines: JobEngine[] = [];
  const removedObjects: string[] = [];
  const prepared: string[] = [];
  const items: ItemSource = itemsOf((id) => records.get(id)!.itemCount);
  const records = new Map<string, JobRecord>();
  let jobs = 0;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-engine-"));
    const options = { prefix: "ATELIER", replicas: 1, leaseMs: 30_000, timeoutMs: 5_000 };
    const address = `sqlite:${join(folder, "queue.db")}`;
    queue = await openJobQueue({ ...options, address }, { clock: systemClock, onProblem: () => {} });
  });
  afterEach(async () => {
    for (const engine of engines.splice(0)) {
      for (const { record } of [...engine.kept()]) await engine.remove(record.id).catch(() => {});
      await engine.close();
    }
  });
  afterAll(async () => {
    await queue.close();
    await rm(folder, { recursive: true });
  });

  it("hands all items of a job out, counts how they end, and says that it is done when everything is ready", async () => {
    const { engine, news } = await started();
    const id = await accepted(engine, { itemCount: 3 });
    const [first, second, third] = await take(3);
    await end(first!, "done");
    await end(second!, "filtered");
    expect(prepared).not.toContain(id);
    await end(third!, "failed");
    await until(() => engine.get(id)?.endedAtMs !== null);
    expect(engine.get(id)).toMatchObject({
      status: "done",
      counts: { queued: 0, running: 0, done: 1, failed: 1, cancelled: 0, filtered: 1 },
      spentDeviceMs: 10,
    });
    expect(prepared).toContain(id);
    expect(news(id)).toEqual(["accepted", "item", "item", "item", "ended"]);
    expect([...engine.usage()]).toMatchObject([{ jobId: id, tenant: "shop", model: "tiny", images: 1, deviceMs: 10 }]);
    await expect(engine.pause(id)).rejects.toMatchObject({
      code: "CONFLICT",
      message: expect.stringContaining("done"),
    });
  });

  it("takes back what waits when a job is paused, lets workers finish what they hold, and goes on when it is resumed", async () => {
    const { engine, news } = await started();
    const id = await accepted(engine, { itemCount: 6 });
    const held = await take(2);
    expect(await engine.pause(id)).toMatchObject({ status: "paused" });
    expect(await take(1, { waitMs: 50 })).toEqual([]);
    for (const lease of held) await end(lease);
    await until(() => engine.get(id)?.counts.done === 2);
    expect(await engine.resume(id)).toMatchObject({ status: "running", counts: { done: 2, queued: 4 } });
    await expect(engine.resume(id)).resolves.toMatchObject({ status: "running" }); // again is no error
    for (const lease of await take(4)) await end(lease);
    await until(() => engine.get(id)?.status === "done");
    expect(news(id).filter((type) => type === "changed")).toHaveLength(2);
  });

  it("tells workers to stop when a job is cancelled, and counts what they end anyway as cancelled", async () => {
    const { engine } = await started();
    const id = await accepted(engine, { itemCount: 4 });
    const [made, held] = await take(2);
    await end(made!);
    await until(() => engine.get(id)?.counts.done === 1);
    const view = await engine.cancel(id);
    expect(view).toMatchObject({ status: "cancelled", counts: { done: 1, cancelled: 3, queued: 0 } });
    expect(view.endedAtMs).not.toBeNull();
    await until(() => held!.lost.aborted);
    await end(held!);
    expect(await take(1, { waitMs: 50 })).toEqual([]);
    expect(engine.get(id)).toMatchObject({ counts: { done: 1, cancelled: 3 } });
    await expect(engine.cancel(id)).resolves.toMatchObject({ status: "cancelled" });
    for (const command of [() => engine.resume(id), () => engine.retry(id)])
      await expect(command()).rejects.toMatchObject({ code: "CONFLICT" });
  });

  it("queues failed items again, all or those named, and ends once more", async () => {
    const { engine, news } = await started();
    const id = await accepted(engine, { itemCount: 4 });
    for (const lease of await take(4)) await end(lease, lease.item.itemIndex === 0 ? "done" : "failed");
    await until(() => news(id).includes("ended"));
    await expect(engine.retry(id, [0])).rejects.toThrow("item 0 is done");
    await expect(engine.retry(id, [9])).rejects.toThrow("item 9 is not there");
    expect(await engine.retry(id, [2])).toMatchObject({ items: 1, job: { status: "running", counts: { failed: 2 } } });
    const [named] = await take(1);
    expect(named!.item).toMatchObject({ itemIndex: 2, parameters: { prompt: "shoe 2" } });
    await end(named!);
    await until(() => news(id).filter((type) => type === "ended").length === 2);
    expect(await engine.retry(id)).toMatchObject({ items: 2 });
    for (const lease of await take(2)) await end(lease);
    await until(() => news(id).filter((type) => type === "ended").length === 3);
    expect(engine.get(id)).toMatchObject({ status: "done", counts: { done: 4, failed: 0 } });
    expect(await engine.retry(id)).toMatchObject({ items: 0 });
  });

  it("deletes a job with everything of it, while it runs", async () => {
    const { engine, news } = await started();
    const id = await accepted(engine, { itemCount: 4 });
    const [held] = await take(1);
    await engine.remove(id);
    await until(() => held!.lost.aborted);
    expect([engine.get(id), engine.list({ max: 10 }), news(id).at(-1)]).toEqual([undefined, [], "removed"]);
    expect(await leftOf(id)).toEqual({ record: undefined, events: 0, objectsRemoved: true });
    expect(await take(1, { waitMs: 50 })).toEqual([]);
    await expect(engine.remove(id)).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("deletes a job when its time after its end is over, and none before", async () => {
    const { engine } = await started();
    const [short, long] = [
      await accepted(engine, { itemCount: 1, deleteAfterMs: 3_000 }),
      await accepted(engine, { itemCount: 1 }),
    ];
    for (const lease of await take(2)) await end(lease);
    await until(() => engine.get(short) === undefined);
    expect(engine.get(long)).toMatchObject({ status: "done" });
    await vi.waitFor(async () =>
      expect(await leftOf(short)).toEqual({ record: undefined, events: 0, objectsRemoved: true }),
    );
  });

  it("goes on after a restart where it was: nothing is lost, and nothing counts twice", async () => {
    const first = await started();
    const id = await accepted(first.engine, { itemCount: 8 });
    const [ended, held] = await take(2);
    await end(ended!);
    await until(() => first.engine.get(id)?.counts.done === 1);
    await first.engine.close();
    engines.length = 0;
    await end(held!); // while nobody looks
    const { engine } = await started();
    expect(engine.get(id)).toMatchObject({ status: "running", counts: { done: 2, queued: 6 }, spentDeviceMs: 20 });
    for (const lease of await take(6)) await end(lease);
    await until(() => engine.get(id)?.endedAtMs !== null);
    expect(engine.get(id)).toMatchObject({ status: "done", counts: { done: 8 }, spentDeviceMs: 80 });
  });

  it("hands out nothing of a tenant that is held, says why, and goes on when it may", async () => {
    const { engine } = await started();
    engine.hold("shop", "images_per_month");
    const id = await accepted(engine, { itemCount: 2 });
    const other = await accepted(engine, { itemCount: 1, tenant: "other" });
    expect((await take(1))[0]!.item.jobId).toBe(other);
    expect(await take(1, { waitMs: 100 })).toEqual([]);
    expect(engine.get(id)).toMatchObject({ status: "queued", heldFor: "images_per_month", etaMs: null });
    engine.hold("shop", null);
    expect((await take(2)).map(({ item }) => item.jobId)).toEqual([id, id]);
    expect(engine.get(id)).toMatchObject({ heldFor: null });
  });

  it("shares a window between two tenants by their weights, 1 to 3", async () => {
    const { engine } = await started();
    engine.hold("small", "later");
    engine.hold("large", "later");
    const small = await accepted(engine, { itemCount: 200, tenant: "small", weight: 1 });
    await accepted(engine, { itemCount: 200, tenant: "large", weight: 3 });
    engine.hold("small", null);
    engine.hold("large", null);
    const window = await take(64);
    expect(window.filter(({ item }) => item.jobId === small).length).toBe(16);
    expect(await take(1, { waitMs: 50 })).toEqual([]); // no more is out than a window
  });

  it("hands a job of 10 items out by turns with one of 100,000 before it, after what was out already", async () => {
    const { engine } = await started();
    await accepted(engine, { itemCount: 100_000 });
    const before = await take(64);
    const small = await accepted(engine, { itemCount: 10 });
    const after: string[] = [];
    for (const lease of before) {
      await end(lease);
      for (const next of await take(1, { waitMs: 0 })) after.push(next.item.jobId);
    }
    while (after.filter((id) => id === small).length < 10)
      for (const next of await take(1)) after.push(next.item.jobId);
    expect(after.lastIndexOf(small)).toBeLessThan(40);
  });

  it("hands out an item again with a new round where its job gets another class", async () => {
    const { engine } = await started();
    const id = await accepted(engine, { itemCount: 2 });
    await until(async () => (await queue.work.depths()).some(({ waiting }) => waiting === 2));
    expect((await engine.setPriority(id, "standard")).record.priority).toBe("standard");
    expect(await take(1, { waitMs: 50 })).toEqual([]);
    const leases = await take(2, { priorityClass: PriorityClass.STANDARD });
    expect(leases.map(({ item }) => item.round > 1)).toEqual([true, true]);
  });

  // One damaged chunk stopped everybody's jobs.
  it("hands out other jobs' items where one job's cannot be read, and says so", async () => {
    const broken = new Set<string>();
    const { engine } = await started({
      read: (id, from) => {
        if (broken.has(id)) throw new ServingError("STORAGE_UNAVAILABLE", `item ${from} of job ${id} is damaged`);
        return items.read(id, from);
      },
    });
    const bad = `job_${jobs}`;
    broken.add(bad);
    expect(await accepted(engine, { itemCount: 5 })).toBe(bad);
    const good = await accepted(engine, { itemCount: 100 });
    const leases = await take(64);
    expect(new Set(leases.map(({ item }) => item.jobId))).toEqual(new Set([good]));
    expect(engine.trouble).toContain("is damaged");
    broken.clear();
    for (const lease of leases) await end(lease);
    const more = await take(41);
    expect(more.filter(({ item }) => item.jobId === bad)).toHaveLength(5);
    expect(engine.trouble).toBeUndefined();
  });

  it("overwrites nothing that another instance wrote, and takes on nothing while a part of the queue is missing", async () => {
    const { engine } = await started();
    const id = await accepted(engine, { itemCount: 2 });
    const key = `jobs.${id}`;
    const kept = (await queue.records.get(key))!;
    const theirs = JSON.stringify({ ...JSON.parse(kept.value), round: 7, wish: "cancel" });
    const revision = await queue.records.put(key, theirs, kept.revision);
    await expect(engine.pause(id)).rejects.toMatchObject({
      code: "STORAGE_UNAVAILABLE",
      detail: expect.stringContaining("another instance"),
    });
    expect(await queue.records.get(key)).toMatchObject({ value: theirs, revision });
    expect(engine.get(id)?.status).toBe("queued");
    await queue.records.remove(key);

    const missing = new ServingError("STORAGE_UNAVAILABLE", "the log is gone");
    const check = vi.spyOn(queue, "check").mockRejectedValue(missing);
    await until(() => engine.trouble === "the log is gone");
    await expect(accepted(engine, { itemCount: 1 })).rejects.toMatchObject(missing);
    check.mockRestore();
    await until(() => engine.trouble === undefined);
    await accepted(engine, { itemCount: 1 });
  });

  it("lists jobs newest first, by tenant, status and part of the name, a page at a time", async () => {
    const { engine } = await started();
    engine.hold("shop", "later");
    const ids: string[] = [];
    for (const [createdAtMs, name] of [
      [1, "Spring"],
      [2, "summer"],
      [3, "Midsummer"],
    ] as const)
      ids.push(await accepted(engine, { createdAtMs, name, itemCount: 1 }));
    const listed = (filter: object) => engine.list({ max: 10, ...filter }).map(({ record }) => ids.indexOf(record.id));
    expect(listed({})).toEqual([2, 1, 0]);
    expect(listed({ name: "SUMMER" })).toEqual([2, 1]);
    expect(listed({ max: 1, after: ids[2] })).toEqual([1]);
    expect([listed({ tenant: "other" }), listed({ status: "done" })]).toEqual([[], []]);
    await expect(engine.accept(records.get(ids[0]!)!)).rejects.toMatchObject({ code: "CONFLICT" });
  });

  /** Ten times as fast as the world: what the engine waits for takes as long for a test as it has to. */
  async function started(source: ItemSource = items) {
    const heard: { type: string; id: string }[] = [];
    const engine = new JobEngine({
      queue,
      items: source,
      clock: FAST,
      log: createLogger("jobs", "silent"),
      beforeEnd: async (id) => void prepared.push(id),
      removeObjects: async (id) => void removedObjects.push(id),
      leaseMs: 30_000,
      keptMs: 1e9,
    });
    engine.onChange(({ type, job }) => void heard.push({ type, id: job.record.id }));
    engines.push(engine);
    await engine.start();
    const news = (of: string) =>
      heard.filter(({ id, type }) => id === of && type !== "progress").map(({ type }) => type);
    return { engine, news };
  }

  async function accepted(engine: JobEngine, said: Partial<JobRecord>): Promise<string> {
    const record = jobRecord({ id: `job_${jobs++}`, createdAtMs: jobs, ...said });
    records.set(record.id, record);
    await engine.accept(record);
    return record.id;
  }

  /** So many items, waited for; fewer where there are none within `waitMs`. */
  async function take(
    count: number,
    { waitMs = 5_000, priorityClass = PriorityClass.BULK as PriorityClass } = {},
  ): Promise<Lease[]> {
    const leases: Lease[] = [];
    while (leases.length < count) {
      const more = await queue.work.pull({ priorityClass, model: "tiny", max: count - leases.length, waitMs });
      if (more.length === 0 && waitMs < 5_000) break;
      if (more.length === 0) throw new Error(`${leases.length} of ${count} items came`);
      leases.push(...more);
    }
    return leases;
  }

  async function end(lease: Lease, ending: Ending = "done"): Promise<void> {
    const { jobId, itemIndex, round } = lease.item;
    const event = outcome(itemIndex, ending, { jobId, round, attempts: lease.attempt, atMs: FAST.nowMs() });
    await queue.events.append({ ...event, atMs: BigInt(Math.round(FAST.nowMs())) }, `${jobId}.${itemIndex}.${round}`);
    await lease.ack();
  }

  async function leftOf(id: string) {
    let events = 0;
    for await (const _ of queue.events.read(id)) events += 1;
    return { record: await queue.records.get(`jobs.${id}`), events, objectsRemoved: removedObjects.includes(id) };
  }
});

describe("JobEngine while the queue does not answer", () => {
  it("refuses commands in bounded time, however many wait, and those that were given up change nothing later", async () => {
    const { engine, queue, pass, clock } = await simulated();
    queue.away = true;
    const asked = Array.from({ length: 12 }, (_, i) => {
      const command = [
        () => engine.pause("job_a"),
        () => engine.setPriority("job_a", "standard"),
        () => engine.cancel("job_a"),
      ];
      return command[i % 3]!().catch((error: ServingError) => ({ code: error.code, atMs: clock.nowMs() }));
    });
    const from = clock.nowMs();
    await pass(15_000);
    for (const result of await Promise.all(asked)) {
      expect(result).toMatchObject({ code: "STORAGE_UNAVAILABLE" });
      expect((result as { atMs: number }).atMs - from).toBeLessThanOrEqual(10_250);
    }
    queue.away = false;
    await pass(60_000);
    expect(engine.get("job_a")).toMatchObject({ status: "queued", record: { priority: "bulk", wish: "run" } });
  });

  it("refuses to wait for a deletion that storage holds up, and goes through with it", async () => {
    const { engine, queue, pass } = await simulated();
    goesAwayAfterAPut(queue);
    const removed = engine.remove("job_a").then(
      () => "removed",
      (error: ServingError) => error.code,
    );
    await pass(12_000);
    expect([await removed, engine.get("job_a"), queue.records.size]).toEqual(["STORAGE_UNAVAILABLE", undefined, 1]);
    queue.away = false;
    await pass(20_000);
    expect(queue.records.size).toBe(0);
  });

  it("goes through with a cancellation whose owner heard that it failed", async () => {
    const { engine, queue, pass } = await simulated();
    goesAwayAfterAPut(queue);
    const cancelled = engine.cancel("job_a").then(
      () => "cancelled",
      (error: ServingError) => error.code,
    );
    await pass(12_000);
    expect(await cancelled).toBe("STORAGE_UNAVAILABLE");
    queue.away = false;
    await pass(20_000);
    expect(engine.get("job_a")).toMatchObject({ status: "cancelled", counts: { cancelled: 10, queued: 0 } });
  });

  it.each([{ told: true }, { told: false }])(
    "hands everything out again where the work stream was deleted (told: $told)",
    async ({ told }) => {
      const { queue, pass } = await simulated();
      await pass(2_000);
      expect(queue.items.size).toBe(10);
      queue.lose({ told });
      await pass(10_000);
      expect([...queue.items.values()].map(({ item }) => item.round > 1)).toEqual(
        Array.from({ length: 10 }, () => true),
      );
    },
  );
});

describe("JobEngine between two events", () => {
  it("tells an end once, though the log says it twice", async () => {
    const { queue, news, pass } = await simulated();
    endAll(queue);
    await pass(15_000);
    queue.append(change("DONE"), "job_a.done.again");
    await pass(15_000);
    expect(news.filter((type) => type === "ended")).toHaveLength(1);
  });

  // The answer was lost, a repeat of an outcome came in, and the end was written under another name.
  it("writes an end under one name, however often it has to be written", async () => {
    const { queue, pass } = await simulated();
    const ids: string[] = [];
    const append = queue.append.bind(queue);
    queue.append = (event, id) => {
      ids.push(id);
      if (ids.length === 1) throw new ServingError("STORAGE_UNAVAILABLE", "not now");
      append(event, id);
    };
    for (let index = 0; index < 10; index++) append(outcome(index), `job_a.${index}.1`);
    await pass(500);
    await pass(10_500);
    append(outcome(3), "job_a.3.2");
    await pass(20_000);
    expect(ids).toEqual(["job_a.done.0", "job_a.done.0"]);
  });

  // A change of priority that ended after the job's last item wrote that the job was done, before its manifest was.
  it("leaves it to the end to say that a job is done, also where its class changes meanwhile", async () => {
    const { engine, queue, pass, donesBeforeEnds } = await simulated();
    await pass(2_000);
    queue.delayMs = () => 1_000;
    const changed = engine.setPriority("job_a", "standard");
    endAll(queue);
    await pass(30_000);
    expect((await changed).status).toBe("done");
    expect([engine.get("job_a")!.endedAtMs !== null, donesBeforeEnds]).toEqual([true, [0]]);
  });

  it("hands an item out again whose worker was heard of before it was taken back, and not for a lease's time since", async () => {
    const { queue, pass } = await simulated();
    await pass(2_000);
    const steps = { stepsDone: 1, stepsTotal: 20, workerId: "w1", round: 1 };
    queue.report({ $typeName: "atelier.v1.ItemProgress", jobId: "job_a", itemIndex: 4, ...steps });
    await pass(250);
    queue.lose({ told: true });
    await pass(3_000);
    const waiting = () => [...queue.items.values()].map(({ item }) => item.itemIndex);
    expect([waiting().length, waiting().includes(4)]).toEqual([9, false]);
    await pass(6_000);
    expect(waiting()).toContain(4);
  });
});

function endAll(queue: SimQueue): void {
  for (let index = 0; index < 10; index++) queue.append(outcome(index), `job_a.${index}.1`);
}

/** The next record is stored, and then nothing answers. */
function goesAwayAfterAPut(queue: SimQueue): void {
  const put = queue.put.bind(queue);
  queue.put = (...record) => {
    queue.put = put;
    queue.away = true;
    return put(...record);
  };
}

const { DONE } = JobStatus;
const START_MS = Date.now();
const FAST: Clock = {
  nowMs: () => START_MS + (Date.now() - START_MS) * 10,
  after: (ms, run) => systemClock.after(ms / 10, run),
};

const until = (fact: () => boolean | Promise<boolean>) =>
  vi.waitFor(async () => expect(await fact()).toBe(true), { timeout: 5_000, interval: 10 });

/** One job of ten items, on a queue in memory and a clock that stands still. */
async function simulated() {
  const clock = new ManualClock(1_000_000);
  const queue = new SimQueue({ clock, random: seededRandom(1), note: () => {} });
  /** Ends that the log told of whenever one had been made ready, which takes ten seconds. */
  const donesBeforeEnds: number[] = [];
  const engine = new JobEngine({
    queue: queue.connect().jobQueue,
    items: itemsOf(() => 10),
    clock,
    log: createLogger("jobs", "silent"),
    beforeEnd: async () => {
      await new Promise<void>((resolve) => clock.after(10_000, resolve));
      const dones = queue.log.filter(({ event: { event } }) => event.case === "change" && event.value.status === DONE);
      donesBeforeEnds.push(dones.length);
    },
    removeObjects: async () => {},
    leaseMs: 5_000,
    keptMs: 1e9,
  });
  const news: string[] = [];
  engine.onChange(({ type }) => void news.push(type));
  const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
  const pass = async (ms: number) => {
    for (let passed = 0; passed < ms; passed += 250) {
      await settled();
      clock.advance(250);
    }
    await settled();
  };
  await engine.start();
  await engine.accept(jobRecord());
  return { engine, queue, clock, pass, news, donesBeforeEnds };
}
