import {
  type DeadLetter,
  type ItemProgress,
  JobEventSchema,
  PriorityClass,
  type WorkItem,
  WorkItemSchema,
} from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { JobQueue, Kept, Lease, LoggedEvent, Pull } from "./job-queue.ts";

/** One queue, made for one test. */
export interface QueueUnderTest {
  /** Opens it once more, as a further process would. */
  open(): Promise<JobQueue>;
  /** How long leases of these openers last. */
  readonly leaseMs: number;
  /** Lets so much time pass, for leases, delays and ages. */
  pass(ms: number): Promise<void>;
  /** After its openers are closed. */
  close(): Promise<void>;
}

/** What every adapter has to do; `start` makes an empty queue. */
export function describeJobQueue(name: string, start: () => Promise<QueueUnderTest>): void {
  describe(`${name} as a job queue`, () => {
    let queue: QueueUnderTest;
    let opened: JobQueue[];
    let jobs: JobQueue;
    let worker: JobQueue;

    const open = async () => {
      const one = await queue.open();
      opened.push(one);
      return one;
    };

    beforeEach(async () => {
      queue = await start();
      opened = [];
      jobs = await open();
      worker = await open();
    });

    afterEach(async () => {
      for (const one of opened) await one.close();
      await queue.close();
    });

    describe("its work", () => {
      it("gives each item to one puller, in the order that they were published", async () => {
        await jobs.work.publish(items("a", 0, 6));
        await jobs.work.publish(items("b", 0, 2));
        const first = await take(worker, { max: 5 });
        const second = await take(await open(), { max: 5 });
        expect(namesOf(first)).toEqual(["a.0", "a.1", "a.2", "a.3", "a.4"]);
        expect(namesOf(second)).toEqual(["a.5", "b.0", "b.1"]);
        expect(await none(worker)).toEqual([]);
      });

      it("brings an item unchanged", async () => {
        const sent = item("a", 7, { round: 3, prompt: "白色背景, “soft” light" });
        await jobs.work.publish([sent]);
        const [lease] = await take(worker);
        expect(lease!.item).toEqual(sent);
        expect(lease!.attempt).toBe(1);
        expect(lease!.leaseMs).toBe(queue.leaseMs);
      });

      it("gives what there is rather than wait until there is as much as was asked for", async () => {
        await jobs.work.publish(items("a", 0, 3));
        expect(namesOf(await take(worker, { max: 10, waitMs: 600_000 }))).toEqual(["a.0", "a.1", "a.2"]);
      });

      it("wakes a puller that waits", async () => {
        const pulled = take(worker, { waitMs: 600_000 });
        await soon();
        await jobs.work.publish(items("a", 0, 1));
        expect(namesOf(await pulled)).toEqual(["a.0"]);
      });

      it("lets a puller give up, and gives nothing to nobody", async () => {
        const stop = new AbortController();
        const pulled = take(worker, { waitMs: 600_000, signal: stop.signal });
        await soon();
        stop.abort();
        expect(await pulled).toEqual([]);
        expect(await take(worker, { signal: AbortSignal.abort() })).toEqual([]);
        await jobs.work.publish(items("a", 0, 1));
        expect(namesOf(await take(await open(), { waitMs: 3 * queue.leaseMs }))).toEqual(["a.0"]);
      });

      it("keeps classes and models apart, and takes an item without a class for standard", async () => {
        await jobs.work.publish([
          item("a", 0, { priorityClass: PriorityClass.BULK, model: "shirts" }),
          item("a", 1, { priorityClass: PriorityClass.STANDARD, model: "shirts" }),
          item("a", 2, { priorityClass: PriorityClass.BULK, model: "shirts/v2.1 *>" }),
          item("a", 3, { priorityClass: PriorityClass.UNSPECIFIED, model: "shirts" }),
        ]);
        expect(namesOf(await take(worker, { max: 9, priorityClass: PriorityClass.STANDARD, model: "shirts" }))).toEqual(
          ["a.1", "a.3"],
        );
        expect(namesOf(await take(worker, { max: 9, priorityClass: PriorityClass.BULK, model: "shirts" }))).toEqual([
          "a.0",
        ]);
        expect(
          namesOf(await take(worker, { max: 9, priorityClass: PriorityClass.BULK, model: "shirts/v2.1 *>" })),
        ).toEqual(["a.2"]);
        expect(await none(worker, { model: "hats" })).toEqual([]);
      });

      it("stores an item once, however often it is published: while it waits, while it is held and soon after", async () => {
        await Promise.all([jobs.work.publish(items("a", 0, 2)), worker.work.publish(items("a", 0, 2))]);
        const leases = await take(worker, { max: 9 });
        expect(namesOf(leases)).toEqual(["a.0", "a.1"]);
        await jobs.work.publish(items("a", 0, 2));
        expect(await none(worker)).toEqual([]);
        for (const lease of leases) await lease.ack();
        await jobs.work.publish(items("a", 0, 2));
        expect(await none(worker)).toEqual([]);
      });

      it("takes the same item of another round for another", async () => {
        await jobs.work.publish([item("a", 0, { round: 0 })]);
        await jobs.work.publish([item("a", 0, { round: 1 })]);
        expect((await take(worker, { max: 9 })).map((lease) => lease.item.round)).toEqual([0, 1]);
      });

      it("publishes nothing where there is nothing to publish", async () => {
        await jobs.work.publish([]);
        expect(await none(worker)).toEqual([]);
      });

      it("holds many items, and gives every one once to pullers at the same time", async () => {
        const count = 20_000;
        for (let from = 0; from < count; from += 2_000) await jobs.work.publish(items("a", from, 2_000));
        expect((await jobs.work.depths())[0]).toMatchObject({ waiting: count, held: 0 });
        const before = process.memoryUsage().heapUsed;
        const seen = new Set<number>();
        const pullAll = async (from: JobQueue) => {
          for (;;) {
            const leases = await take(from, { max: 250, waitMs: 50 });
            if (leases.length === 0) return;
            for (const { item: one } of leases) {
              expect(seen.has(one.itemIndex)).toBe(false);
              seen.add(one.itemIndex);
            }
            await Promise.all(leases.map((lease) => lease.ack()));
          }
        };
        await Promise.all([pullAll(jobs), pullAll(worker), pullAll(await open())]);
        expect(seen.size).toBe(count);
        expect(await jobs.work.depths()).toEqual([]);
        // 20,000 items are some 10 MB on the wire; nothing keeps what was dealt with.
        expect(process.memoryUsage().heapUsed - before).toBeLessThan(100e6);
      });
    });

    describe("a lease", () => {
      it("keeps an item that is done from ever coming back", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const [lease] = await take(worker);
        await lease!.ack();
        await queue.pass(2 * queue.leaseMs);
        expect(await none(worker)).toEqual([]);
        expect(lease!.lost.aborted).toBe(false);
      });

      it("that runs out says so, and the item comes again as the next attempt", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const [lost] = await take(worker);
        await queue.pass(1.5 * queue.leaseMs);
        const [again] = await take(await open(), { waitMs: 3 * queue.leaseMs });
        expect(nameOf(again!)).toBe("a.0");
        expect(again!.attempt).toBe(2);
        expect(lost!.lost.aborted).toBe(true);
        expect(lost!.lost.reason).toMatchObject({ code: "DEADLINE_EXCEEDED" });
      });

      it("that was lost does nothing any more to what somebody else has now", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const [lost] = await take(worker);
        await queue.pass(1.5 * queue.leaseMs);
        const [again] = await take(await open(), { waitMs: 3 * queue.leaseMs });
        await lost!.extend();
        await lost!.release();
        await lost!.bury({ code: "INTERNAL", message: "late", workerId: "w" });
        await lost!.ack();
        lost!.report({ workerId: "w", stepsDone: 1, stepsTotal: 2 });
        expect(await none(worker)).toEqual([]);
        expect(await lettersOf(jobs)).toEqual([]);
        await again!.release();
        expect(namesOf(await take(worker, { waitMs: queue.leaseMs }))).toEqual(["a.0"]);
      });

      it("lasts as long as it is extended", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const [lease] = await take(worker);
        for (let i = 0; i < 4; i += 1) {
          await queue.pass(0.5 * queue.leaseMs);
          await lease!.extend();
        }
        expect(await none(jobs)).toEqual([]);
        expect(lease!.lost.aborted).toBe(false);
        await lease!.ack();
        await queue.pass(2 * queue.leaseMs);
        expect(await none(jobs)).toEqual([]);
      });

      it("of a process that went away runs out", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const gone = await queue.open();
        const [lease] = await take(gone);
        await gone.close();
        expect(lease!.lost.aborted).toBe(true);
        expect(await none(worker)).toEqual([]);
        await queue.pass(1.5 * queue.leaseMs);
        const [again] = await take(worker, { waitMs: 3 * queue.leaseMs });
        expect([nameOf(again!), again!.attempt]).toEqual(["a.0", 2]);
      });

      it("that is released gives the item to the next, as a further attempt unless that is forgiven", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const attempts: number[] = [];
        const redelivered: boolean[] = [];
        for (const forgiven of [true, false, true, true, false]) {
          const [lease] = await take(worker, { waitMs: queue.leaseMs });
          attempts.push(lease!.attempt);
          redelivered.push(lease!.redelivered);
          await lease!.release({ forgiven });
          await lease!.ack();
        }
        expect(attempts).toEqual([1, 1, 2, 2, 2]);
        expect(redelivered).toEqual([false, true, true, true, true]);
      });

      it("that is released for later leaves the item alone until then", async () => {
        await jobs.work.publish(items("a", 0, 2));
        const [first] = await take(worker, { max: 1 });
        await first!.release({ delayMs: queue.leaseMs });
        expect(namesOf(await take(worker, { max: 9 }))).toEqual(["a.1"]);
        expect(await none(worker)).toEqual([]);
        await queue.pass(1.2 * queue.leaseMs);
        const again = await take(await open(), { max: 1, waitMs: 3 * queue.leaseMs });
        expect(namesOf(again)).toEqual(["a.0"]);
      });

      it("that was ended once ignores what comes after", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const [lease] = await take(worker);
        await Promise.all([lease!.ack(), lease!.release(), lease!.extend()]);
        await lease!.bury({ code: "INTERNAL", message: "late", workerId: "w" });
        expect(await none(worker)).toEqual([]);
        expect(await lettersOf(jobs)).toEqual([]);
      });

      it("tells other openers how far its item is", async () => {
        const heard: ItemProgress[] = [];
        const stop = jobs.work.onProgress((progress) => heard.push(progress));
        await soon();
        await jobs.work.publish([item("a", 5, { round: 2 })]);
        const [lease] = await take(worker);
        await until(() => {
          lease!.report({ workerId: "w-1", stepsDone: 3, stepsTotal: 20 });
          return heard.length > 0;
        });
        expect(heard[0]).toMatchObject({
          jobId: "a",
          itemIndex: 5,
          round: 2,
          workerId: "w-1",
          stepsDone: 3,
          stepsTotal: 20,
        });
        stop();
      });
    });

    describe("withdrawing a job", () => {
      it("takes back what nobody holds, and no other job's", async () => {
        await jobs.work.publish(items("a", 0, 3));
        await jobs.work.publish(items("ab", 0, 1));
        const [held] = await take(worker, { max: 1 });
        await jobs.work.withdraw("a");
        expect(namesOf(await take(worker, { max: 9 }))).toEqual(["ab.0"]);
        await held!.extend();
        expect(held!.lost.aborted).toBe(false);
        await held!.ack();
      });

      it("with stop ends the leases of those who hold some, and nothing comes back", async () => {
        await jobs.work.publish([...items("a", 0, 3), ...items("b", 0, 1)]);
        const leases = await take(worker, { max: 9 });
        await jobs.work.withdraw("a", { stop: true });
        await until(() => leases.filter(({ lost }) => lost.aborted).length === 3);
        expect(leases.map(({ lost }) => lost.aborted)).toEqual([true, true, true, false]);
        expect(leases[0]!.lost.reason).toMatchObject({ code: "CANCELLED" });
        await leases[3]!.ack();
        await queue.pass(1.5 * queue.leaseMs);
        expect(await none(worker, { waitMs: 100 })).toEqual([]);
      });

      it("of which there is nothing changes nothing", async () => {
        await jobs.work.publish(items("a", 0, 1));
        await jobs.work.withdraw("b", { stop: true });
        expect(namesOf(await take(worker))).toEqual(["a.0"]);
      });
    });

    describe("depths", () => {
      it("count what waits and what is held by class and model, with the age of the oldest", async () => {
        expect(await jobs.work.depths()).toEqual([]);
        await jobs.work.publish(items("a", 0, 3));
        await jobs.work.publish([item("a", 3, { priorityClass: PriorityClass.STANDARD, model: "hats" })]);
        const leases = await take(worker, { max: 2 });
        await queue.pass(0.5 * queue.leaseMs);
        const depths = [...(await jobs.work.depths())].sort((a, b) => a.priorityClass - b.priorityClass);
        expect(depths).toMatchObject([
          { priorityClass: PriorityClass.STANDARD, model: "hats", waiting: 1, held: 0 },
          { priorityClass: PriorityClass.BULK, model: "shirts", waiting: 1, held: 2 },
        ]);
        for (const { oldestMs } of depths) {
          expect(oldestMs).toBeGreaterThanOrEqual(0.5 * queue.leaseMs);
          expect(oldestMs).toBeLessThan(0.5 * queue.leaseMs + 10_000);
        }
        for (const lease of leases) await lease.ack();
        for (const lease of await take(worker)) await lease.ack();
        const left = (await jobs.work.depths()).find((depth) => depth.model === "shirts");
        expect(left ?? { waiting: 0, held: 0, oldestMs: 0 }).toMatchObject({ waiting: 0, held: 0, oldestMs: 0 });
      });
    });

    describe("dead letters", () => {
      const why = { code: "OUT_OF_MEMORY", message: "4096 x 4096 does not fit", workerId: "w-2" };

      it("keep what was buried, with its reason, and it is not pulled again", async () => {
        await jobs.work.publish(items("a", 0, 1));
        const [lease] = await take(worker);
        await lease!.release();
        const [again] = await take(worker, { waitMs: queue.leaseMs });
        await again!.bury(why);
        const letters = await lettersOf(jobs);
        expect(letters).toMatchObject([{ ...why, attempts: 2, item: again!.item }]);
        expect(Number(letters[0]!.atMs)).toBeGreaterThan(0);
        await queue.pass(1.5 * queue.leaseMs);
        expect(await none(worker)).toEqual([]);
      });

      it("are listed in the order that they came in, of all jobs or of one", async () => {
        await jobs.work.publish([...items("a", 0, 2), ...items("b", 0, 1), ...items("a", 2, 1)]);
        for (const lease of await take(worker, { max: 9 })) await lease.bury(why);
        expect(letterNames(await lettersOf(jobs))).toEqual(["a.0", "a.1", "b.0", "a.2"]);
        expect(letterNames(await lettersOf(jobs, "a"))).toEqual(["a.0", "a.1", "a.2"]);
        expect(await lettersOf(jobs, "c")).toEqual([]);
      });

      it("are removed one by one or by job", async () => {
        await jobs.work.publish([...items("a", 0, 3), ...items("b", 0, 1)]);
        for (const lease of await take(worker, { max: 9 })) await lease.bury(why);
        await jobs.work.removeDeadLetters("a", [1, 77]);
        expect(letterNames(await lettersOf(jobs))).toEqual(["a.0", "a.2", "b.0"]);
        await jobs.work.removeDeadLetters("a", []);
        await jobs.work.removeDeadLetters("c");
        expect(letterNames(await lettersOf(jobs))).toEqual(["a.0", "a.2", "b.0"]);
        await jobs.work.removeDeadLetters("a");
        expect(letterNames(await lettersOf(jobs))).toEqual(["b.0"]);
      });

      it("stay when the job is withdrawn, and do not keep the item of a later round back", async () => {
        await jobs.work.publish(items("a", 0, 1));
        for (const lease of await take(worker)) await lease.bury(why);
        await jobs.work.withdraw("a", { stop: true });
        await jobs.work.publish([item("a", 0, { round: 1 })]);
        expect(namesOf(await take(worker))).toEqual(["a.0"]);
        expect(letterNames(await lettersOf(jobs))).toEqual(["a.0"]);
      });
    });

    describe("the event log", () => {
      it("is empty at first", async () => {
        expect(await jobs.events.lastSequence()).toBe(0);
        expect(await readAll(jobs, "a")).toEqual([]);
      });

      it("gives a job's events in the order that they were appended, unchanged", async () => {
        for (let index = 0; index < 3; index += 1) await worker.events.append(done("a", index), `a.${index}.0`);
        await worker.events.append(done("b", 0), "b.0.0");
        const events = await readAll(jobs, "a");
        expect(events.map(({ event }) => event)).toEqual([done("a", 0), done("a", 1), done("a", 2)]);
        expect(rising(events)).toBe(true);
        expect(await jobs.events.lastSequence()).toBeGreaterThan(events[2]!.sequence);
      });

      it("is read from a number on", async () => {
        for (let index = 0; index < 4; index += 1) await worker.events.append(done("a", index), `a.${index}.0`);
        const all = await readAll(jobs, "a");
        expect(await readAll(jobs, "a", all[1]!.sequence)).toEqual(all.slice(2));
        expect(await readAll(jobs, "a", all[3]!.sequence)).toEqual([]);
      });

      it("drops what is appended a second time", async () => {
        await Promise.all([worker.events.append(done("a", 0), "a.0.0"), jobs.events.append(done("a", 0), "a.0.0")]);
        const last = await jobs.events.lastSequence();
        await worker.events.append(done("a", 0), "a.0.0");
        expect(await readAll(jobs, "a")).toHaveLength(1);
        expect(await jobs.events.lastSequence()).toBe(last);
      });

      it("follows the past and then what comes, without a gap or a repeat", async () => {
        const count = 1_500;
        const appended = (from: number, to: number) =>
          Promise.all(indexes(from, to).map((index) => worker.events.append(done("a", index), `a.${index}.0`)));
        await appended(0, count / 2);
        const stop = new AbortController();
        const seen: LoggedEvent[] = [];
        const followed = (async () => {
          for await (const batch of jobs.events.follow(0, stop.signal)) {
            expect(batch.length).toBeGreaterThan(0);
            seen.push(...batch);
          }
        })();
        await appended(count / 2, count);
        await until(() => seen.length >= count);
        await soon();
        await worker.events.append(done("b", 0), "b.0.0");
        await until(() => seen.length > count);
        stop.abort();
        await followed;
        expect(seen).toHaveLength(count + 1);
        expect(rising(seen)).toBe(true);
        expect(new Set(seen.map(({ event }) => `${event.jobId}.${outcomeIndex(event)}`)).size).toBe(count + 1);
        expect(seen.at(-1)!.event.jobId).toBe("b");
      });

      it("is followed from a number on, by another opener after the first was closed", async () => {
        for (let index = 0; index < 4; index += 1) await worker.events.append(done("a", index), `a.${index}.0`);
        const all = await readAll(jobs, "a");
        await jobs.close();
        const reopened = await open();
        expect(await readAll(reopened, "a")).toEqual(all);
        const stop = new AbortController();
        const seen: LoggedEvent[] = [];
        for await (const batch of reopened.events.follow(all[1]!.sequence, stop.signal)) {
          seen.push(...batch);
          if (seen.length === 2) await worker.events.append(done("b", 0), "b.0.0");
          if (seen.length === 3) stop.abort();
        }
        expect(seen.slice(0, 2)).toEqual(all.slice(2));
        expect(seen[2]!.event.jobId).toBe("b");
      });

      it("ends what follows it when the queue is closed", async () => {
        const reader = await open();
        const ended = (async () => {
          for await (const _ of reader.events.follow(0, new AbortController().signal)) expect.unreachable();
        })();
        await soon();
        await reader.close();
        await ended;
      });

      it("forgets a job, and gives none of its numbers again", async () => {
        for (let index = 0; index < 3; index += 1) {
          await worker.events.append(done("a", index), `a.${index}.0`);
          await worker.events.append(done("ab", index), `ab.${index}.0`);
        }
        const last = await jobs.events.lastSequence();
        await jobs.events.remove("a");
        await jobs.events.remove("ab");
        await jobs.events.remove("none");
        expect(await readAll(jobs, "a")).toEqual([]);
        expect(await readAll(jobs, "ab")).toEqual([]);
        await worker.events.append(done("c", 0), "c.0.0");
        expect((await readAll(jobs, "c"))[0]!.sequence).toBeGreaterThan(last);
      });
    });

    describe("records", () => {
      it("are read as they were put, by any opener", async () => {
        expect(await jobs.records.get("jobs.a")).toBeUndefined();
        const revision = await jobs.records.put("jobs.a", '{"name":"春"}');
        expect(await worker.records.get("jobs.a")).toEqual({ key: "jobs.a", value: '{"name":"春"}', revision });
        await jobs.records.put("jobs.a", "");
        expect((await worker.records.get("jobs.a"))!.value).toBe("");
      });

      it("are put where they have the revision that is expected", async () => {
        const first = await jobs.records.put("jobs.a", "1", 0);
        const second = await jobs.records.put("jobs.a", "2", first);
        expect(second).toBeGreaterThan(first);
        await expect(jobs.records.put("jobs.a", "3", first)).rejects.toMatchObject({ code: "CONFLICT" });
        await expect(jobs.records.put("jobs.a", "3", 0)).rejects.toMatchObject({ code: "CONFLICT" });
        await expect(jobs.records.put("jobs.b", "3", second)).rejects.toMatchObject({ code: "CONFLICT" });
        expect((await worker.records.get("jobs.a"))!.value).toBe("2");
        expect(await worker.records.get("jobs.b")).toBeUndefined();
      });

      it("let one of several writers through", async () => {
        const revision = await jobs.records.put("jobs.a", "0");
        const put = (by: JobQueue, value: string) => by.records.put("jobs.a", value, revision);
        const results = await Promise.allSettled([put(jobs, "1"), put(worker, "2"), put(jobs, "3"), put(worker, "4")]);
        expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      });

      it("are gone once removed, and may be made anew", async () => {
        const before = await jobs.records.put("jobs.a", "1", 0);
        await worker.records.remove("jobs.a");
        await worker.records.remove("jobs.a");
        expect(await jobs.records.get("jobs.a")).toBeUndefined();
        expect(await listAll(jobs, "jobs.")).toEqual([]);
        await expect(jobs.records.put("jobs.a", "2", before)).rejects.toMatchObject({ code: "CONFLICT" });
        expect(await jobs.records.put("jobs.a", "2", 0)).toBeGreaterThan(before);
      });

      it("are listed by what their keys begin with", async () => {
        const keys = ["jobs.a", "jobs.b", "jobs.b.c", "jobsets.x", "presets.t.A_1-b", "jobs-x"];
        for (const key of keys) await jobs.records.put(key, key);
        const listed = async (prefix: string) => (await listAll(worker, prefix)).map(({ key }) => key).sort();
        expect(await listed("jobs.")).toEqual(["jobs.a", "jobs.b", "jobs.b.c"]);
        expect(await listed("jobs.b")).toEqual(["jobs.b", "jobs.b.c"]);
        expect(await listed("jobs")).toEqual(["jobs-x", "jobs.a", "jobs.b", "jobs.b.c", "jobsets.x"]);
        expect(await listed("presets.t.")).toEqual(["presets.t.A_1-b"]);
        expect(await listed("none.")).toEqual([]);
        expect(await listed("")).toEqual([...keys].sort());
        expect((await listAll(worker, "jobs.a"))[0]).toEqual(await jobs.records.get("jobs.a"));
      });

      it("are listed to the last where there are many", async () => {
        await Promise.all(indexes(0, 300).map((index) => jobs.records.put(`jobs.${index}`, "x".repeat(index))));
        const listed = await listAll(worker, "jobs.");
        expect(new Set(listed.map(({ key }) => key)).size).toBe(300);
        expect(listed).toHaveLength(300);
      });

      it.each(
        ["", ".", "a.", ".a", "a..b", "a b", "a*", "a>", "a/b", "ä", "a\n", "a".repeat(257)].map((key) => ({
          key,
          shown: JSON.stringify(key).slice(0, 8),
        })),
      )("are refused under the key $shown", async ({ key }) => {
        const refused = { code: "INVALID_REQUEST", field: "key" };
        await expect(jobs.records.put(key, "1")).rejects.toMatchObject(refused);
        await expect(jobs.records.get(key)).rejects.toMatchObject(refused);
        await expect(jobs.records.remove(key)).rejects.toMatchObject(refused);
      });

      it("have 512 KiB at most, in UTF-8", async () => {
        const most = "é".repeat(256 * 1024);
        await jobs.records.put("a".repeat(256), most);
        expect((await worker.records.get("a".repeat(256)))!.value).toBe(most);
        const refused = { code: "INVALID_REQUEST", field: "value" };
        await expect(jobs.records.put("b", `${most}x`)).rejects.toMatchObject(refused);
        expect(await worker.records.get("b")).toBeUndefined();
      });
    });

    describe("reopening", () => {
      it("loses nothing", async () => {
        await jobs.work.publish(items("a", 0, 3));
        const [done0] = await take(worker, { max: 1 });
        await worker.events.append(done("a", 0), "a.0.0");
        await done0!.ack();
        const [bad] = await take(worker, { max: 1 });
        await bad!.bury({ code: "INTERNAL", message: "bad", workerId: "w" });
        const revision = await jobs.records.put("jobs.a", "1");
        for (const one of opened) await one.close();

        const reopened = await open();
        await reopened.check();
        expect(namesOf(await take(reopened, { max: 9 }))).toEqual(["a.2"]);
        expect(letterNames(await lettersOf(reopened))).toEqual(["a.1"]);
        expect((await readAll(reopened, "a")).map(({ event }) => event)).toEqual([done("a", 0)]);
        expect(await reopened.records.get("jobs.a")).toEqual({ key: "jobs.a", value: "1", revision });
      });
    });

    describe("closing", () => {
      it("may be done twice, ends pulls that wait, and what is asked afterwards is refused", async () => {
        const one = await open();
        const pulled = take(one, { waitMs: 600_000 });
        await soon();
        await one.close();
        await one.close();
        expect(await pulled).toEqual([]);
        const refused = { code: "STORAGE_UNAVAILABLE" };
        await expect(one.work.publish(items("a", 0, 1))).rejects.toMatchObject(refused);
        await expect(one.events.append(done("a", 0), "a.0.0")).rejects.toMatchObject(refused);
        await expect(one.records.get("jobs.a")).rejects.toMatchObject(refused);
        await expect(one.check()).rejects.toMatchObject(refused);
      });
    });
  });
}

function item(
  jobId: string,
  itemIndex: number,
  { round = 0, priorityClass = PriorityClass.BULK as PriorityClass, model = "shirts", prompt = "" } = {},
): WorkItem {
  return create(WorkItemSchema, {
    jobId,
    itemIndex,
    round,
    parameters: { model, prompt: prompt || `a red shirt, number ${itemIndex}`, width: 64, height: 64, steps: 20 },
    order: { priorityClass, tenant: "shop", tenantWeight: 1 },
    objectKey: `jobs/${jobId}/pictures/${itemIndex}-v0.png`,
    predictedDeviceMs: 2.5,
  });
}

function items(jobId: string, from: number, count: number): WorkItem[] {
  return indexes(from, from + count).map((index) => item(jobId, index));
}

function indexes(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

function done(jobId: string, itemIndex: number) {
  return create(JobEventSchema, {
    jobId,
    atMs: 1_000n,
    event: {
      case: "outcome",
      value: { itemIndex, attempts: 1, result: { case: "done", value: { objectKey: `${itemIndex}`, bytes: 9n } } },
    },
  });
}

function outcomeIndex({ event }: LoggedEvent["event"]): number | undefined {
  return event.case === "outcome" ? event.value.itemIndex : undefined;
}

function take(from: JobQueue, ask: Partial<Pull> = {}): Promise<readonly Lease[]> {
  return from.work.pull({ priorityClass: PriorityClass.BULK, model: "shirts", max: 1, waitMs: 2_000, ...ask });
}

/** What a puller gets who does not expect anything. */
async function none(from: JobQueue, ask: Partial<Pull> = {}): Promise<string[]> {
  return namesOf(await take(from, { max: 9, waitMs: 50, ...ask }));
}

function nameOf({ item: { jobId, itemIndex } }: Lease): string {
  return `${jobId}.${itemIndex}`;
}

function namesOf(leases: readonly Lease[]): string[] {
  return leases.map(nameOf);
}

function lettersOf(from: JobQueue, jobId?: string): Promise<DeadLetter[]> {
  return collect(from.work.deadLetters(jobId));
}

function letterNames(letters: readonly DeadLetter[]): string[] {
  return letters.map((letter) => `${letter.item?.jobId}.${letter.item?.itemIndex}`);
}

function readAll(from: JobQueue, jobId: string, after?: number): Promise<LoggedEvent[]> {
  return collect(from.events.read(jobId, after));
}

function listAll(from: JobQueue, prefix: string): Promise<Kept[]> {
  return collect(from.records.list(prefix));
}

async function collect<T>(from: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const one of from) all.push(one);
  return all;
}

function rising(events: readonly LoggedEvent[]): boolean {
  return events.every((event, i) => i === 0 || event.sequence > events[i - 1]!.sequence);
}

/** Long enough for what was just begun to be under way. */
function soon(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 50));
}

/** The test's own time limit ends it where it never comes to be. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}
