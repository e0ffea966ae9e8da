import { systemClock } from "@atelier/core";
import { type JobQueue, type LoggedEvent, openJobQueue } from "@atelier/job-queue";
import { JobEventSchema, PriorityClass, type WorkItem, WorkItemSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { freePorts } from "../support/free-ports.ts";
import { type NatsCluster, type NatsProcess, startNats, startNatsCluster } from "../support/nats.ts";

const TIMEOUT_MS = 1_000;
const UNAVAILABLE = "STORAGE_UNAVAILABLE";

let queues: JobQueue[] = [];
let problems: string[] = [];
let prefixes = 0;

beforeEach(() => {
  problems = [];
  prefixes += 1;
});

afterEach(async () => {
  for (const queue of queues) await queue.close();
  queues = [];
});

describe("a queue on a NATS server", () => {
  let nats: NatsProcess;

  beforeAll(async () => {
    nats = await startNats();
  });

  afterAll(() => nats.stop());

  it("that is not there cannot be opened, and says where it was looked for", async () => {
    const [port] = await freePorts(1);
    await expect(open(`nats://127.0.0.1:${port}`)).rejects.toMatchObject({
      code: UNAVAILABLE,
      detail: expect.stringContaining(`NATS at 127.0.0.1:${port} cannot be reached`),
    });
  });

  it("that wants another password cannot be opened, and the one that was tried is not repeated", async () => {
    const guarded = await startNats({ args: ["--user", "jobs", "--pass", "right"] });
    const address = (password: string) => guarded.url.replace("//", `//jobs:${password}@`);
    const refused = await open(address("hush")).catch((error: Error) => error);
    expect(refused).toMatchObject({ code: UNAVAILABLE });
    expect(String(refused)).toMatch(/authorization violation/i);
    expect(String(refused)).not.toContain("hush");
    await (await open(address("right"))).check();
    await queues.pop()?.close();
    await guarded.stop();
  });

  it("that stands still is told of when the time-out is over, and by nothing later", async () => {
    const queue = await open(nats.url);
    nats.pause();
    const late = new RegExp(`did not answer within ${TIMEOUT_MS} ms`);
    const asked = [
      queue.work.publish([item(0)]),
      queue.events.append(done(0), "a.0.0"),
      queue.records.put("a", "1"),
      queue.records.get("a"),
      queue.check(),
    ];
    for (const one of await Promise.allSettled(asked)) expect(one).toMatchObject({ reason: { code: UNAVAILABLE } });
    await expect(queue.check()).rejects.toThrow(late);
    nats.resume();
    await queue.check();
  });

  it("that is killed and started again has all that was promised, and its openers go on", async () => {
    const queue = await open(nats.url);
    const worker = await open(nats.url);
    const told: (string | undefined)[] = [];
    queue.onConnection((lost) => told.push(lost));
    const stop = new AbortController();
    const followed: LoggedEvent[] = [];
    const following = (async () => {
      for await (const batch of queue.events.follow(0, stop.signal)) followed.push(...batch);
    })().catch(() => "the follower was told");
    await queue.work.publish(Array.from({ length: 50 }, (_, index) => item(index)));
    const [held] = await take(worker, 1);
    await worker.events.append(done(0), "a.0.0");
    const revision = await queue.records.put("jobs.a", "1");

    await nats.kill();
    await until(() => told.length > 0);
    expect(told[0]).toMatch(/the connection to NATS .* was lost/);
    await expect(queue.work.publish([item(99)])).rejects.toMatchObject({ code: UNAVAILABLE });
    await expect(take(worker, 1)).rejects.toMatchObject({ code: UNAVAILABLE });
    expect(held!.lost.aborted).toBe(false);
    await nats.start();
    await until(() => told.at(-1) === undefined);

    await held!.extend();
    await held!.ack();
    const leases = await take(worker, 100);
    expect(leases.map((lease) => lease.item.itemIndex)).toEqual(
      expect.arrayContaining(Array.from({ length: 49 }, (_, index) => index + 1)),
    );
    expect(await queue.records.get("jobs.a")).toMatchObject({ value: "1", revision });
    await worker.events.append(done(1), "a.1.0");
    stop.abort();
    await following;
    const again: LoggedEvent[] = [];
    for await (const event of queue.events.read("a")) again.push(event);
    expect(again.map(({ event }) => event)).toEqual([done(0), done(1)]);
  });

  it("whose work stream was deleted makes it anew, and every opener is told that what it held is gone", async () => {
    const queue = await open(nats.url);
    const worker = await open(nats.url);
    const lost: string[] = [];
    queue.work.onLost(() => lost.push("queue"));
    worker.work.onLost(() => lost.push("worker"));
    await queue.work.publish([item(0)]);
    await deleteStream(nats, "WORK");
    const pulled = take(worker, 5, 20_000);
    await until(() => lost.length === 2);
    await queue.work.publish([item(0), item(1)]);
    expect((await pulled).length).toBeGreaterThan(0);
    expect(lost.sort()).toEqual(["queue", "worker"]);
    expect(problems.join()).toMatch(/stream T\d+_WORK is gone: it was deleted, and is made anew/);
  });

  it("whose work stream was deleted while nobody pulled is published to all the same", async () => {
    const queue = await open(nats.url);
    await queue.work.publish([item(0)]);
    await deleteStream(nats, "WORK");
    await queue.work.publish([item(1)]);
    expect((await take(queue, 5)).map((lease) => lease.item.itemIndex)).toEqual([1]);
  });

  it.each([
    ["EVENTS", "append", (queue: JobQueue) => queue.events.append(done(0), "a.0.0")],
    ["EVENTS", "lastSequence", (queue: JobQueue) => queue.events.lastSequence()],
    ["EVENTS", "follow", (queue: JobQueue) => firstOf(queue.events.follow(0, new AbortController().signal))],
    ["EVENTS", "read", (queue: JobQueue) => firstOf(queue.events.read("a"))],
    ["RECORDS", "get", (queue: JobQueue) => queue.records.get("a")],
    ["RECORDS", "put", (queue: JobQueue) => queue.records.put("a", "1")],
    ["RECORDS", "list", (queue: JobQueue) => firstOf(queue.records.list(""))],
    ["DEAD", "deadLetters", (queue: JobQueue) => firstOf(queue.work.deadLetters())],
  ])("whose stream %s was deleted says so at %s: that cannot be made up for", async (stream, _what, use) => {
    const queue = await open(nats.url);
    await deleteStream(nats, stream);
    await expect(use(queue)).rejects.toMatchObject({ code: UNAVAILABLE, detail: expect.stringMatching(/stream/) });
    await expect(queue.check()).rejects.toThrow(new RegExp(`stream T\\d+_${stream}: stream not found`));
  });

  it("whose events were deleted is opened by nobody any more: an empty log would say that nothing was made", async () => {
    const queue = await open(nats.url);
    await queue.records.put("jobs.a", "{}", 0);
    await queue.events.append(done(0), "a.0.0");
    await deleteStream(nats, "EVENTS");
    const refused = { code: UNAVAILABLE, detail: expect.stringMatching(/_EVENTS was deleted, .* restore .*_EVENTS/) };
    await expect(open(nats.url)).rejects.toMatchObject(refused);
    await expect(open(nats.url)).rejects.toMatchObject(refused);
    expect(await queue.records.get("jobs.a")).toBeDefined();
    await queue.records.remove("jobs.a");
    await (await open(nats.url)).check();
    // Who had it open before does not take the new one for the old one.
    await expect(queue.check()).rejects.toThrow(/_EVENTS was deleted and made anew/);
  });

  it("whose records were deleted is opened by nobody either, while there are events of jobs", async () => {
    const queue = await open(nats.url);
    await queue.events.append(done(0), "a.0.0");
    await deleteStream(nats, "RECORDS");
    await expect(open(nats.url)).rejects.toThrow(/_RECORDS was deleted, and with it the jobs/);
    await queue.events.remove("a");
    await (await open(nats.url)).check();
  });

  it("without JetStream says so, and how to have it", async () => {
    const plain = await startNats({ jetStream: false });
    await expect(open(plain.url)).rejects.toThrow(/has no JetStream: start it with --jetstream/);
    await plain.stop();
  });

  it("whose password was another one for a while is used again, and is told of as lost once", async () => {
    const guarded = await startNats({ args: ["--user", "jobs", "--pass", "right"] });
    const queue = await open(guarded.url.replace("//", "//jobs:right@"));
    const told: boolean[] = [];
    queue.onConnection((lost) => told.push(lost !== undefined));
    await guarded.kill();
    await guarded.start(["--user", "jobs", "--pass", "other"]);
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    await guarded.kill();
    await guarded.start();
    await until(() => told.at(-1) === false);
    await queue.check();
    expect(told).toEqual([true, false]);
    await queues.pop()?.close();
    await guarded.stop();
  });

  it("that has no room for more refuses what comes, and keeps what it has", async () => {
    const small = await startNats({ config: "jetstream { max_file_store: 2MB }" });
    const queue = await open(small.url);
    const taken: number[] = [];
    const fill = async () => {
      for (let index = 0; ; index += 1) {
        await queue.work.publish([item(index, "x".repeat(50_000))]);
        taken.push(index);
      }
    };
    await expect(fill()).rejects.toMatchObject({
      code: UNAVAILABLE,
      detail: expect.stringMatching(/exceed|insufficient/i),
    });
    expect(taken.length).toBeGreaterThan(5);
    const leases = await take(queue, 1_000);
    expect(leases.map((lease) => lease.item.itemIndex)).toEqual(taken);
    for (const lease of leases) await lease.ack();
    await queue.work.publish([item(1_000)]);
    await queues.pop()?.close();
    await small.stop();
  });
});

describe("a queue on three NATS servers", () => {
  let cluster: NatsCluster;

  beforeAll(async () => {
    cluster = await startNatsCluster();
  });

  afterAll(() => cluster.stop());

  it("goes on with two of them, and has everything that was promised before and since", async () => {
    const queue = await openSoon(cluster.url);
    const worker = await openSoon(cluster.url);
    await queue.work.publish(Array.from({ length: 100 }, (_, index) => item(index)));
    const revision = await queue.records.put("jobs.a", "1");
    const ended = new Set<number>();
    const work = async () => {
      while (ended.size < 100) {
        try {
          for (const lease of await take(worker, 10)) {
            const { itemIndex } = lease.item;
            await worker.events.append(done(itemIndex), `a.${itemIndex}.0`);
            await lease.ack();
            ended.add(itemIndex);
            if (ended.size === 30) await cluster.nodes[0]!.kill();
          }
        } catch (error) {
          // As a worker does: it is the queue's fault, and it tries again.
          expect(error).toMatchObject({ code: UNAVAILABLE });
        }
      }
    };
    await work();
    const logged = await onceAnswered(async () => {
      const indexes = new Set<number>();
      for await (const { event } of queue.events.read("a")) {
        if (event.event.case === "outcome") indexes.add(event.event.value.itemIndex);
      }
      return indexes;
    });
    expect(logged.size).toBe(100);
    expect(await onceAnswered(() => queue.records.get("jobs.a"))).toMatchObject({ value: "1", revision });
    await queue.records.put("jobs.a", "2", revision);
    await cluster.nodes[0]!.start();
  });

  function openSoon(address: string): Promise<JobQueue> {
    return onceAnswered(() => open(address, 3));
  }

  /** The servers that are left take a moment to agree on who leads each stream. */
  async function onceAnswered<T>(ask: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        expect(error).toMatchObject({ code: UNAVAILABLE });
      }
    }
  }
});

async function open(address: string, replicas = 1): Promise<JobQueue> {
  const queue = await openJobQueue(
    { address, prefix: `T${prefixes}`, replicas, leaseMs: 5_000, timeoutMs: TIMEOUT_MS * replicas },
    { clock: systemClock, onProblem: (text) => problems.push(text) },
  );
  queues.push(queue);
  return queue;
}

async function deleteStream(nats: NatsProcess, name: string): Promise<void> {
  const connection = await connect({ servers: nats.url });
  await (await jetstreamManager(connection)).streams.delete(`T${prefixes}_${name}`);
  await connection.close();
}

function item(itemIndex: number, prompt = ""): WorkItem {
  return create(WorkItemSchema, {
    jobId: "a",
    itemIndex,
    parameters: { model: "m", prompt },
    order: { priorityClass: PriorityClass.BULK },
  });
}

function done(itemIndex: number) {
  return create(JobEventSchema, { jobId: "a", event: { case: "outcome", value: { itemIndex } } });
}

function firstOf<T>(from: AsyncIterable<T>): Promise<IteratorResult<T>> {
  return from[Symbol.asyncIterator]().next();
}

function take(queue: JobQueue, max: number, waitMs = 1_000) {
  return queue.work.pull({ priorityClass: PriorityClass.BULK, model: "m", max, waitMs });
}

/** The test's own time limit ends it where it never comes to be. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}
