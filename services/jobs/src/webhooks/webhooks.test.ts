import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { ManualClock, seededRandom } from "@atelier/core";
import { type JobQueue, openJobQueue } from "@atelier/job-queue";
import { JobEventSchema } from "@atelier/proto";
import { createLogger, createRegistry } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import { Webhook } from "standardwebhooks";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { JobNews, Jobs, JobView } from "../ports.ts";
import { Webhooks } from "./webhooks.ts";

const HOUR_MS = 3_600_000;

describe("webhooks", () => {
  it("tell a job's start and end to its receiver, signed as the Standard Webhooks library verifies it", async () => {
    const { jobs, webhooks } = await open();
    const receiver = await listen();
    jobs.change(job({ url: receiver.url }), { status: "running", startedAtMs: NOW });
    jobs.change(job({ url: receiver.url }), { status: "done", startedAtMs: NOW, endedAtMs: NOW + 1 });
    await receiver.calledTimes(2);

    const { secret } = await webhooks.secrets.of("shop");
    expect(secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    for (const { headers, body } of receiver.calls) new Webhook(secret).verify(body, headers); // throws
    const events = receiver.calls.map(({ body }) => JSON.parse(body));
    expect(events.map(({ type }) => type).sort()).toEqual(["job.done", "job.started"]);
    const done = events.find(({ type }) => type === "job.done");
    expect(done).toMatchObject({
      timestamp: new Date(NOW + 1).toISOString(),
      data: { job: { id: "job_a", name: "launch", status: "done", item_count: 3 } },
    });
    expect(new Set(receiver.calls.map(({ headers }) => headers["webhook-id"])).size).toBe(2);
  });

  it("sign with the secret before as well for as long as a rotation gives it", async () => {
    const { jobs, webhooks, clock } = await open();
    const receiver = await listen();
    const before = await webhooks.secrets.of("shop");
    const after = await webhooks.secrets.rotate("shop", { graceMs: HOUR_MS });
    jobs.change(job({ url: receiver.url }), { status: "running" });
    await receiver.calledTimes(1);
    const [{ headers, body }] = receiver.calls as [Call];
    for (const { secret } of [before, after]) new Webhook(secret).verify(body, headers);

    clock.advance(HOUR_MS);
    const { "webhook-signature": signature } = await webhooks.secrets.headers("shop", { id: "msg_1", body: "{}" });
    expect(signature.split(" ")).toHaveLength(1);
    expect((await webhooks.secrets.of("other")).secret).not.toBe(after.secret);
  });

  it("reach a receiver that was down for an hour, once, with the id that it would have had", async () => {
    const { jobs, webhooks, clock } = await open();
    const receiver = await listen({ answer: () => 503 });
    jobs.change(job({ url: receiver.url, events: ["job.done"] }), { status: "done", endedAtMs: NOW });
    await receiver.calledTimes(1);
    await receiver.down();
    for (let minute = 0; minute < 60; minute++) {
      const [delivery] = await webhooks.deliveries("job_a", { max: 10 });
      clock.advance(60_000);
      if (delivery!.nextAtMs! < clock.nowMs()) await attempted(webhooks, delivery!.attemptCount + 1);
    }
    const [waiting] = await webhooks.deliveries("job_a", { max: 10 });
    expect(waiting!.attempts.at(-1)).toMatchObject({ status: null, error: expect.stringContaining("ECONNREFUSED") });

    await receiver.up(() => 204);
    clock.advance(HOUR_MS);
    const delivered = await ended(webhooks);
    expect(delivered).toMatchObject({ status: "delivered", id: waiting!.id });
    expect(delivered.attempts[0]).toMatchObject({ status: 503, error: "it answered 503" });
    expect(receiver.calls.map(({ headers }) => headers["webhook-id"])).toEqual([waiting!.id, waiting!.id]);
  });

  it("go on after a restart of the process with what was pending, and with what happened meanwhile", async () => {
    const first = await open();
    const receiver = await listen({ answer: () => 500 });
    const running = job({ url: receiver.url });
    first.jobs.change(running, { status: "running" });
    await receiver.calledTimes(1);
    await attempted(first.webhooks, 1);
    await first.webhooks.close();
    const noted = await first.queue.records.get(STATE);

    await append(first.queue, { itemIndex: 2, code: "NUMERIC_FAILURE", message: "NaN in the latents" });
    await receiver.up(() => 200);
    const second = await open({
      queue: first.queue,
      startMs: NOW + HOUR_MS,
      jobs: [view(running, { status: "paused" })],
    });
    await receiver.calledTimes(4);
    expect(receiver.events()).toEqual(["job.started", "job.started", "job.item.failed", "job.paused"].sort());
    const item = receiver.calls.map(({ body }) => JSON.parse(body).data.item).find(Boolean);
    expect(item).toEqual({ index: 2, code: "NUMERIC_FAILURE", message: "NaN in the latents", attempts: 1 });

    await ended(second.webhooks);
    await second.webhooks.close();
    await first.queue.records.put(STATE, noted!.value); // as if it had died before it could note what it told
    const third = await open({
      queue: first.queue,
      startMs: NOW + 2 * HOUR_MS,
      jobs: [view(running, { status: "paused" })],
    });
    await third.webhooks.close();
    expect(receiver.calls).toHaveLength(4); // nothing is told twice
  });

  it("tell each failed item, also where more fail at once than are held", async () => {
    const { jobs, queue } = await open();
    const receiver = await listen();
    const big = job({ url: receiver.url, events: ["job.item.failed"], itemCount: 1_500 });
    const sequences: number[] = [];
    for (let index = 0; index < 1_500; index++) {
      sequences.push(await append(queue, { itemIndex: index, code: "INTERNAL", message: "no" }));
    }
    for (const [index, sequence] of sequences.entries()) jobs.fail(big, { index, sequence });
    await receiver.calledTimes(1_500);
    await sleep(50);
    const indexes = receiver.calls.map(({ body }) => JSON.parse(body).data.item.index as number);
    expect(new Set(indexes).size).toBe(1_500);
    expect(indexes).toHaveLength(1_500);
  });

  it("tell only what the job's filter names", async () => {
    const { jobs } = await open();
    const receiver = await listen();
    const quiet = job({ url: receiver.url, events: ["job.cancelled"] });
    jobs.change(quiet, { status: "running" });
    jobs.fail(quiet, { index: 0, sequence: 1 });
    jobs.news({ type: "progress", job: view(quiet, { status: "running" }) });
    jobs.change(quiet, { status: "cancelled", endedAtMs: NOW });
    await receiver.calledTimes(1);
    await sleep(50);
    expect(receiver.events()).toEqual(["job.cancelled"]);
  });

  it("tell progress and do not repeat a progress call that failed", async () => {
    const { jobs, webhooks, clock } = await open();
    const receiver = await listen({ answer: () => 500 });
    const running = job({ url: receiver.url, events: ["job.progress"] });
    jobs.change(running, { status: "running" });
    jobs.news({ type: "progress", job: view(running, { status: "running" }) });
    clock.advance(0);
    await receiver.calledTimes(1);
    clock.advance(HOUR_MS);
    await sleep(50);
    expect(receiver.events()).toEqual(["job.progress"]);
    expect(await webhooks.deliveries("job_a", { max: 10 })).toEqual([]);
  });

  it("stop for a job whose receiver answers 410", async () => {
    const { jobs, webhooks } = await open();
    const receiver = await listen({ answer: () => 410 });
    const running = job({ url: receiver.url });
    jobs.change(running, { status: "running" });
    expect(await ended(webhooks)).toMatchObject({ status: "stopped" });
    jobs.change(running, { status: "done", endedAtMs: NOW });
    await sleep(50);
    expect(receiver.events()).toEqual(["job.started"]);
  });

  it("are made again on demand", async () => {
    const { jobs, webhooks, clock } = await open();
    const receiver = await listen({ answer: () => 302 });
    jobs.change(job({ url: receiver.url, events: ["job.done"] }), { status: "done", endedAtMs: NOW });
    await attempted(webhooks, 1);
    for (let hours = 0; hours < 30; hours++) {
      const [latest] = await webhooks.deliveries("job_a", { max: 1 });
      const { attemptCount, status } = latest!;
      if (status === "failed") break;
      clock.advance(HOUR_MS);
      await attempted(webhooks, attemptCount + 1);
    }
    const failed = await ended(webhooks);
    expect(failed).toMatchObject({ status: "failed", attempts: expect.arrayContaining([]) });
    expect(failed.attempts.at(-1)).toMatchObject({ status: 302, error: "redirects are not followed" });

    await receiver.up(() => 200);
    await webhooks.redeliver((await webhooks.delivery(failed.id))!);
    const delivered = await ended(webhooks);
    expect(delivered).toMatchObject({ id: failed.id, status: "delivered", createdAtMs: failed.createdAtMs });
    expect(delivered.attemptCount).toBe(failed.attemptCount + 1);
  });

  it("are recorded as failed, and never sent, where their host is of this network", async () => {
    const { jobs, webhooks } = await open({ privateAllowed: false });
    const receiver = await listen();
    jobs.change(job({ url: receiver.url, events: ["job.done"] }), { status: "done", endedAtMs: NOW });
    await attempted(webhooks, 1);
    const [delivery] = await webhooks.deliveries("job_a", { max: 1 });
    expect(delivery!.attempts[0]!.error).toBe("127.0.0.1 is not public (loopback); only public addresses are called");
    expect(receiver.calls).toEqual([]);
  });

  it("are forgotten with their job, and a week after their end", async () => {
    const { jobs, webhooks, clock } = await open();
    const receiver = await listen();
    const one = job({ url: receiver.url, events: ["job.done"] });
    jobs.change(one, { status: "done", endedAtMs: NOW });
    await ended(webhooks);
    for (let hours = 0; hours <= 7 * 24; hours++) clock.advance(HOUR_MS);
    await until(async () => (await webhooks.deliveries("job_a", { max: 1 })).length === 0);

    const two = { ...one, id: "job_b" };
    jobs.change(two, { status: "done", endedAtMs: NOW });
    await receiver.calledTimes(2);
    jobs.remove(two);
    await until(async () => (await webhooks.deliveries("job_b", { max: 1 })).length === 0);
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

/** Calls carry the time, and the library takes none that is minutes old. */
const NOW = Date.now();

/** What the receiver of job_a was told, among the records. */
const STATE = "webhooks.jobs.job_a";

let folder = "";
let count = 0;
let opened: { close(): Promise<void> }[] = [];
let servers: Server[] = [];
const queues: JobQueue[] = [];

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "atelier-webhooks-"));
});

afterEach(async () => {
  await Promise.all(opened.map((one) => one.close()));
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
  opened = [];
  servers = [];
});

afterAll(async () => {
  await Promise.all(queues.map((queue) => queue.close()));
  rmSync(folder, { recursive: true });
});

async function open({
  queue,
  startMs = NOW,
  jobs: known = [],
  privateAllowed = true,
}: {
  queue?: JobQueue;
  startMs?: number;
  jobs?: readonly JobView[];
  privateAllowed?: boolean;
} = {}) {
  const clock = new ManualClock(startMs);
  const address = `sqlite:${join(folder, `${count++}.db`)}`;
  const open =
    queue ?? (await openJobQueue({ address, leaseMs: 30_000, timeoutMs: 5_000 }, { clock, onProblem: () => {} }));
  if (queue === undefined) queues.push(open);
  const jobs = new FakeJobs(known);
  const webhooks = new Webhooks({
    ...open,
    jobs: jobs as unknown as Jobs,
    clock,
    random: seededRandom(1),
    logger: createLogger("jobs", "silent"),
    registry: createRegistry("jobs"),
    privateAllowed,
  });
  await webhooks.start();
  opened.push(webhooks);
  return { queue: open, clock, jobs, webhooks };
}

type Record = JobView["record"];

function job({
  url,
  events = [],
  itemCount = 3,
}: {
  url: string;
  events?: readonly string[];
  itemCount?: number;
}): Record {
  const webhook = { url, events };
  return {
    id: "job_a",
    tenant: "shop",
    name: "launch",
    itemCount,
    createdAtMs: NOW,
    source: { kind: "csv", rows: 3, skipped: [], skippedCount: 0 },
    predictedDeviceMs: 0,
    predictedCost: 0,
    currency: "EUR",
    webhook,
  } as unknown as Record;
}

function view(record: Record, change: Partial<JobView>): JobView {
  const counts = { queued: 0, running: 0, done: 0, failed: 0, cancelled: 0, filtered: 0 };
  const rest = { heldFor: null, counts, spentDeviceMs: 0, spentCost: 0, itemsPerMinute: 0, etaMs: null };
  return { record, status: "queued", ...rest, startedAtMs: null, endedAtMs: null, sequence: 0, ...change };
}

/** The engine, as far as webhooks see it. */
class FakeJobs {
  readonly #views = new Map<string, JobView>();
  readonly #listeners = new Set<(news: JobNews) => void>();

  constructor(known: readonly JobView[]) {
    for (const one of known) this.#views.set(one.record.id, one);
  }

  get = (id: string) => this.#views.get(id);
  list = ({ after }: { after?: string }) => (after === undefined ? [...this.#views.values()] : []);
  states = () => ({ reason: () => ({ code: "INTERNAL", message: "no", attempts: 1 }) }) as never;
  onChange = (listener: (news: JobNews) => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  change(record: Record, change: Partial<JobView>): void {
    this.news({ type: change.endedAtMs == null ? "changed" : "ended", job: view(record, change) });
  }

  fail(record: Record, { index, sequence }: { index: number; sequence: number }): void {
    this.news({
      type: "item",
      job: view(record, { status: "running", sequence }),
      itemIndex: index,
      state: "failed",
      sequence,
    });
  }

  remove(record: Record): void {
    const job = this.#views.get(record.id)!;
    this.#views.delete(record.id);
    for (const listener of this.#listeners) listener({ type: "removed", job });
  }

  news(news: JobNews): void {
    this.#views.set(news.job.record.id, news.job);
    for (const listener of this.#listeners) listener(news);
  }
}

async function append(
  queue: JobQueue,
  { itemIndex, code, message }: { itemIndex: number; code: string; message: string },
) {
  const value = { itemIndex, round: 1, attempts: 1, result: { case: "failed" as const, value: { code, message } } };
  const event = create(JobEventSchema, { jobId: "job_a", atMs: BigInt(NOW), event: { case: "outcome", value } });
  await queue.events.append(event, `job_a.${itemIndex}.1`);
  return queue.events.lastSequence();
}

interface Call {
  readonly headers: { [name: string]: string };
  readonly body: string;
}

/** A receiver that can be taken down and comes back at its address. */
async function listen({ answer = () => 200 }: { answer?: () => number } = {}) {
  const calls: Call[] = [];
  let port = 0;
  let now = answer;
  let server: Server;
  const up = async () => {
    server = createServer(async (request, reply) => {
      calls.push({ headers: request.headers as Call["headers"], body: await text(request) });
      reply.writeHead(now(), { location: "/elsewhere" }).end("said");
    });
    await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
    port = (server.address() as AddressInfo).port;
    servers.push(server);
  };
  await up();
  let isUp = true;
  return {
    url: `http://127.0.0.1:${port}/hook`,
    calls,
    events: () => calls.map(({ body }) => JSON.parse(body).type as string).sort(),
    calledTimes: (times: number) => until(() => calls.length >= times),
    down: () => {
      isUp = false;
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
    up: async (answers: () => number) => {
      now = answers;
      if (!isUp) await up();
      isUp = true;
    },
  };
}

const attempted = (webhooks: Webhooks, times: number) =>
  until(async () => ((await webhooks.deliveries("job_a", { max: 1 }))[0]?.attemptCount ?? 0) >= times);

async function ended(webhooks: Webhooks) {
  await until(async () => {
    const all = await webhooks.deliveries("job_a", { max: 10 });
    return all.length > 0 && all.every(({ status }) => status !== "pending");
  });
  return (await webhooks.deliveries("job_a", { max: 1 }))[0]!;
}

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; !(await holds()); i++) {
    if (i > 2_000) throw new Error("waited 20 s");
    await sleep(10);
  }
}
