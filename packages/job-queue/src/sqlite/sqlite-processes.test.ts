import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { seededRandom, systemClock } from "@atelier/core";
import { PriorityClass } from "@atelier/proto";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { JobQueue } from "../job-queue.ts";
import { openSqliteQueue } from "./open-sqlite-queue.ts";
import { type ChildNews, numberedItem } from "./testing/queue-child.ts";

const CHILD = join(import.meta.dirname, "testing/queue-child.ts");
const { DatabaseSync } = createRequire(import.meta.url)("node:sqlite") as typeof import("node:sqlite");

let folder: string;
let path: string;
let queues: JobQueue[];
let children: ChildProcess[];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "atelier-queue-"));
  path = join(folder, "queue.db");
  queues = [];
  children = [];
});

afterEach(async () => {
  for (const child of children) await kill(child);
  for (const queue of queues) await queue.close();
  await rm(folder, { recursive: true });
});

describe("a queue's file, among processes", () => {
  it("is made by whichever of several openers at once comes first", async () => {
    const opening = Array.from({ length: 4 }, () => heardFrom(childOf("opener"), 1));
    for (const news of await Promise.all(opening)) expect(news).toEqual([{ ready: true }]);
  });

  it("has everything that was promised by a process that was killed while it wrote", async () => {
    const random = seededRandom(6);
    const items = new Set<number>();
    const events = new Set<number>();
    for (let round = 0; round < 4; round += 1) {
      const writer = childOf("writer");
      writer.on("message", (news: ChildNews) => {
        if ("promised" in news) (news.promised === "item" ? items : events).add(news.index);
      });
      const before = events.size;
      while (events.size < before + 20) await pause(1);
      await pause(random.next() * 30);
      await kill(writer);
    }

    expect(integrity()).toBe("ok");
    const queue = await open();
    const logged = new Set<number>();
    for await (const { event } of queue.events.read("a")) {
      if (event.event.case === "outcome") logged.add(event.event.value.itemIndex);
    }
    const stored = new Set<number>();
    for (;;) {
      const leases = await queue.work.pull({ priorityClass: PriorityClass.BULK, model: "m", max: 500, waitMs: 0 });
      if (leases.length === 0) break;
      for (const { item } of leases) stored.add(item.itemIndex);
    }
    expect([...items].filter((index) => !stored.has(index))).toEqual([]);
    expect([...events].filter((index) => !logged.has(index))).toEqual([]);
    expect(events.size).toBeGreaterThanOrEqual(80);
  });

  it("gives every item to somebody who ends it, while those who hold some are killed", async () => {
    const count = 1_500;
    const queue = await open(300);
    const random = seededRandom(7);
    const consumers = Array.from({ length: 3 }, () => childOf("consumer", 300));
    for (let from = 0; from < count; from += 100) {
      await queue.work.publish(Array.from({ length: 100 }, (_, i) => numberedItem(from + i)));
      if (from % 300 === 0) {
        const victim = Math.floor(random.next() * 3);
        await pause(random.next() * 100);
        await kill(consumers[victim]!);
        consumers[victim] = childOf("consumer", 300);
      }
    }
    while ((await queue.work.depths()).length > 0) await pause(20);
    const ended: number[] = [];
    for await (const { event } of queue.events.read("a")) {
      if (event.event.case === "outcome") ended.push(event.event.value.itemIndex);
    }
    expect(ended).toHaveLength(count);
    expect(new Set(ended).size).toBe(count);
  });

  it("refuses what it has no room for, keeps what it took, and goes on when there is room again", async () => {
    // Node ignores the signal that comes with this limit, so that a write over it fails as on a full disk.
    const filler = spawn(
      "bash",
      ["-c", 'ulimit -f 2048; exec "$@"', "bash", process.execPath, CHILD, "filler", path, "30000"],
      { stdio: ["ignore", "inherit", "inherit", "ipc"] },
    );
    children.push(filler);
    const taken = new Set<number>();
    const failed = await new Promise<ChildNews>((resolve) => {
      filler.on("message", (news: ChildNews) => {
        if ("promised" in news) taken.add(news.index);
        if ("failed" in news) resolve(news);
      });
    });
    expect(failed).toMatchObject({
      code: "STORAGE_UNAVAILABLE",
      failed: expect.stringMatching(/queue\.db failed: (disk I\/O error|database or disk is full)/),
    });

    await kill(filler);
    expect(integrity()).toBe("ok");
    const queue = await open();
    const leases = await queue.work.pull({ priorityClass: PriorityClass.BULK, model: "m", max: 1_000, waitMs: 0 });
    const stored = new Set(leases.map(({ item }) => item.itemIndex));
    expect(taken.size).toBeGreaterThan(10);
    expect([...taken].filter((index) => !stored.has(index))).toEqual([]);
    await queue.work.publish([numberedItem(100_000)]);
  });
});

async function open(leaseMs = 30_000): Promise<JobQueue> {
  const queue = await openSqliteQueue({ path, leaseMs, timeoutMs: 5_000 }, { clock: systemClock });
  queues.push(queue);
  return queue;
}

function childOf(role: "opener" | "writer" | "consumer", leaseMs = 30_000): ChildProcess {
  const child = fork(CHILD, [role, path, String(leaseMs)]);
  children.push(child);
  return child;
}

async function heardFrom(child: ChildProcess, count: number): Promise<ChildNews[]> {
  const heard: ChildNews[] = [];
  child.on("message", (news: ChildNews) => heard.push(news));
  while (heard.length < count) await pause(2);
  return heard;
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

/** As SQLite itself finds the file, after nobody has it open. */
function integrity(): unknown {
  const database = new DatabaseSync(path);
  const row = database.prepare("PRAGMA integrity_check").get() as { integrity_check: string };
  database.close();
  return row.integrity_check;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
