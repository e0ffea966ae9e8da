import { appendFile, chmod, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, ManualClock, systemClock } from "@atelier/core";
import { PriorityClass } from "@atelier/proto";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { describeJobQueue } from "../job-queue.contract.ts";
import type { JobQueue, Lease } from "../job-queue.ts";
import { openSqliteQueue } from "./open-sqlite-queue.ts";
import { numberedEvent, numberedItem } from "./testing/queue-child.ts";

const { DatabaseSync } = createRequire(import.meta.url)("node:sqlite") as typeof import("node:sqlite");

const LEASE_MS = 30_000;
const HOUR_MS = 3_600_000;

describeJobQueue("a file", async () => {
  const own = await mkdtemp(join(tmpdir(), "atelier-queue-"));
  const clock = new ManualClock(1_000_000);
  return {
    open: () => openSqliteQueue({ path: join(own, "queue.db"), leaseMs: LEASE_MS, timeoutMs: 5_000 }, { clock }),
    leaseMs: LEASE_MS,
    pass: async (ms) => clock.advance(ms),
    close: () => rm(own, { recursive: true }),
  };
});

let folder: string;
let path: string;
let queues: JobQueue[];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "atelier-queue-"));
  path = join(folder, "queue.db");
  queues = [];
});

afterEach(async () => {
  for (const queue of queues) await queue.close();
  await rm(folder, { recursive: true });
});

describe("a clock that is set an hour forward", () => {
  it("leaves what is held with its holder, where that extends before anybody else pulls", async () => {
    const clock = new SetClock();
    const [first, second] = [await open(clock), await open(clock)];
    await first.work.publish([numberedItem(0)]);
    const [held] = await take(first);
    clock.set(HOUR_MS);
    await held!.extend();
    expect(await take(second)).toEqual([]);
    await held!.ack();
    expect(await first.work.depths()).toEqual([]);
  });

  it("gives what is held to a second puller at worst, and whoever has it then is the only one to end it", async () => {
    const clock = new SetClock();
    const [first, second] = [await open(clock), await open(clock)];
    await first.work.publish([numberedItem(0)]);
    const [held] = await take(first);
    clock.set(HOUR_MS);
    const [again] = await take(second);
    expect(again!.attempt).toBe(2);
    await held!.extend();
    expect(held!.lost.reason).toMatchObject({ code: "DEADLINE_EXCEEDED" });
    await held!.ack();
    expect(await first.work.depths()).toMatchObject([{ waiting: 0, held: 1 }]);
    await again!.ack();
    expect(await first.work.depths()).toEqual([]);
  });
});

describe("a clock that is set an hour back", () => {
  it("leaves what is held with its holder", async () => {
    const clock = new SetClock();
    const [first, second] = [await open(clock), await open(clock)];
    await first.work.publish([numberedItem(0)]);
    const [held] = await take(first);
    clock.set(-HOUR_MS);
    expect(await take(second)).toEqual([]);
    await held!.extend();
    expect(held!.lost.aborted).toBe(false);
    expect(await take(second)).toEqual([]);
    await held!.ack();
    expect(await first.work.depths()).toEqual([]);
  });

  it("gives what a dead process held to another a lease time later, not an hour", async () => {
    const clock = new SetClock();
    const [first, second] = [await open(clock), await open(clock)];
    await first.work.publish([numberedItem(0)]);
    await take(first);
    await first.close();
    clock.set(-HOUR_MS);
    expect(await take(second)).toEqual([]);
    clock.set(LEASE_MS - 1);
    expect(await take(second)).toEqual([]);
    clock.set(1);
    expect((await take(second)).map(({ attempt }) => attempt)).toEqual([2]);
  });

  it("frees what was released for later, rather than an hour after that", async () => {
    const clock = new SetClock();
    const queue = await open(clock);
    await queue.work.publish([numberedItem(0)]);
    const [lease] = await take(queue);
    await lease!.release({ delayMs: 10_000 });
    expect(await take(queue)).toEqual([]);
    clock.set(-HOUR_MS);
    expect(await take(queue)).toHaveLength(1);
  });

  it("makes nothing older than it is, nor younger than nothing", async () => {
    const clock = new SetClock();
    const queue = await open(clock);
    await queue.work.publish([numberedItem(0)]);
    clock.set(-HOUR_MS);
    expect(await queue.work.depths()).toMatchObject([{ waiting: 1, oldestMs: 0 }]);
  });
});

describe("an item that was published again", () => {
  it("is known for two minutes after it was done, and is no burden after that", async () => {
    const clock = new SetClock();
    const queue = await open(clock);
    await queue.work.publish([numberedItem(0)]);
    for (const lease of await take(queue)) await lease.ack();
    clock.set(119_000);
    await queue.work.publish([numberedItem(0), numberedItem(1)]);
    expect((await take(queue)).map(({ item }) => item.itemIndex)).toEqual([1]);
    clock.set(2_000);
    await queue.work.publish([numberedItem(2)]);
    expect(rows("items WHERE item_index = 0")).toBe(0);
  });
});

describe("a lease whose file cannot be written", () => {
  it("stays its puller's, runs out in time and says so", async () => {
    const clock = new ManualClock(1_000_000);
    const queue = await open(clock, 50);
    await queue.work.publish([numberedItem(0)]);
    const [lease] = await take(queue);
    const unlock = lock();
    await expect(lease!.ack()).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    await lease!.extend();
    expect(lease!.lost.aborted).toBe(false);
    clock.advance(LEASE_MS);
    expect(lease!.lost.reason).toMatchObject({ code: "DEADLINE_EXCEEDED" });
    unlock();
    expect(await take(queue)).toHaveLength(1);
  });

  it("may be ended at the second try", async () => {
    const queue = await open(systemClock, 50);
    await queue.work.publish([numberedItem(0)]);
    const [lease] = await take(queue);
    const unlock = lock();
    await expect(lease!.ack()).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    unlock();
    await lease!.ack();
    expect(await queue.work.depths()).toEqual([]);
  });
});

describe("progress", () => {
  it("keeps the newest reports only", async () => {
    const queue = await open();
    await queue.work.publish(Array.from({ length: 3_000 }, (_, index) => numberedItem(index)));
    const leases = await take(queue, 3_000);
    for (const lease of leases) lease.report({ workerId: "w", stepsDone: 1, stepsTotal: 2 });
    while (rows("progress") === 0) await pause(5);
    expect(rows("progress")).toBe(2_000);
  });
});

describe("a queue's file", () => {
  it("is made with its folder", async () => {
    path = join(folder, "of", "jobs", "queue.db");
    await (await open()).check();
  });

  it("is opened while another process holds it for a moment, and is written after that", async () => {
    const queue = await open();
    const unlock = lock();
    let ticks = 0;
    const ticking = setInterval(() => {
      ticks += 1;
    }, 1);
    const published = queue.work.publish([numberedItem(0)]);
    await pause(100);
    unlock();
    await published;
    clearInterval(ticking);
    // Whoever waits for a lock goes on with everything else.
    expect(ticks).toBeGreaterThan(3);
    expect(await take(queue)).toHaveLength(1);
  });

  it("that stays locked is told of after the time-out", async () => {
    const queue = await open(systemClock, 100);
    const unlock = lock();
    await expect(queue.records.put("a", "1")).rejects.toThrow(/queue\.db was locked by another process for 100 ms/);
    expect(await queue.records.get("a")).toBeUndefined();
    unlock();
    await queue.records.put("a", "1", 0);
  });

  it("that is no database is refused", async () => {
    await writeFile(path, "id,prompt\n".repeat(1_000));
    await expect(open()).rejects.toMatchObject({
      code: "STORAGE_UNAVAILABLE",
      detail: expect.stringMatching(/queue\.db cannot be opened: file is not a database/),
    });
  });

  it("that is another program's database is refused, and left as it was", async () => {
    const other = new DatabaseSync(path);
    other.exec("CREATE TABLE songs (title TEXT)");
    other.close();
    await expect(open()).rejects.toThrow(/queue\.db is another program's database/);
    expect(rows("sqlite_master")).toBe(1);
  });

  it("of a newer version is refused", async () => {
    await (await open()).close();
    const newer = new DatabaseSync(path);
    newer.exec("PRAGMA user_version = 9");
    newer.close();
    await expect(open()).rejects.toThrow(/has schema version 9, of a newer Atelier; this one reads 1/);
  });

  it("that is a folder, or lies where there can be none, is refused", async () => {
    await mkdir(path);
    await expect(open()).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    await rm(path, { recursive: true });
    await writeFile(join(folder, "file"), "");
    path = join(folder, "file", "queue.db");
    await expect(open()).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
  });

  // The superuser may write anything.
  it.skipIf(process.getuid?.() === 0)("that may only be read is refused", async () => {
    await (await open()).close();
    await chmod(path, 0o444);
    await expect(open()).rejects.toThrow(/queue\.db cannot be opened: attempt to write a readonly database/);
  });

  it("that was cut short says so at once or with what it cannot read", async () => {
    const queue = await open();
    await queue.work.publish(Array.from({ length: 500 }, (_, index) => numberedItem(index, "x".repeat(500))));
    await queue.close();
    const bytes = await readFile(path);
    await writeFile(path, bytes.subarray(0, bytes.length / 2));
    const broken = async () => take(await open(), 500);
    await expect(broken()).rejects.toMatchObject({
      code: "STORAGE_UNAVAILABLE",
      detail: expect.stringMatching(/queue\.db .*malformed/),
    });
  });

  it("survives a log whose end is torn", async () => {
    const queue = await open();
    await queue.events.append(numberedEvent(0), "a.0.0");
    await appendFile(`${path}-wal`, Buffer.alloc(5_000, 7));
    const other = await open();
    expect(await other.events.lastSequence()).toBe(1);
    await other.events.append(numberedEvent(1), "a.1.0");
    expect(await queue.events.lastSequence()).toBe(2);
  });

  it("that is deleted or replaced while it is open is told of, by the check and by every write", async () => {
    const queue = await open();
    await rename(path, `${path}.away`);
    const gone = /queue\.db was deleted/;
    await expect(queue.check()).rejects.toThrow(gone);
    await expect(queue.work.publish([numberedItem(0)])).rejects.toThrow(gone);
    await writeFile(path, "");
    await expect(queue.events.append(numberedEvent(0), "a.0.0")).rejects.toThrow(/queue\.db was replaced/);
    await rename(`${path}.away`, path);
    await queue.check();
    await queue.work.publish([numberedItem(0)]);
  });
});

async function open(clock: Clock = systemClock, timeoutMs = 5_000): Promise<JobQueue> {
  const queue = await openSqliteQueue({ path, leaseMs: LEASE_MS, timeoutMs }, { clock });
  queues.push(queue);
  return queue;
}

function take(queue: JobQueue, max = 9): Promise<readonly Lease[]> {
  return queue.work.pull({ priorityClass: PriorityClass.BULK, model: "m", max, waitMs: 0 });
}

/** As a process that is in the middle of a write. */
function lock(): () => void {
  const other = new DatabaseSync(path);
  other.exec("BEGIN IMMEDIATE");
  return () => other.close();
}

function rows(table: string): number {
  const database = new DatabaseSync(path);
  const { count } = database.prepare(`SELECT count(*) AS count FROM ${table}`).get() as { count: number };
  database.close();
  return count;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** One that is set by hand, as by an operator or a time server: timers run on, and know nothing of it. */
class SetClock implements Clock {
  #offsetMs = 0;

  nowMs(): number {
    return 1_000_000_000 + this.#offsetMs;
  }

  set(byMs: number): void {
    this.#offsetMs += byMs;
  }

  after(delayMs: number, run: () => void): () => void {
    return systemClock.after(delayMs, run);
  }
}
