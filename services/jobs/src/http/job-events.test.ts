import { setTimeout as sleep } from "node:timers/promises";
import { systemClock } from "@atelier/core";
import type { LoggedEvent } from "@atelier/job-queue";
import { JobEventSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { JobNews, JobView } from "../ports.ts";
import { type JobsWorld, startJobs } from "../testing/jobs-world.ts";
import { JobEventStream } from "./job-event-stream.ts";
import type { JobJson } from "./job-json.ts";

describe("GET /v1/jobs/{id}/events", () => {
  let world: JobsWorld;
  beforeAll(async () => {
    world = await startJobs();
  });
  afterAll(() => world.stop());

  it("begins with the job as it is, and tells of each picture as it ends, and of the job's end", async () => {
    const id = await submitted(3);
    const events = await listen(id);
    expect(await events.next()).toMatchObject({ event: "job", data: { job: { id, status: "queued" } } });
    const [first, second, third] = await world.work.take(3);
    await world.work.finish(first!);
    await world.work.fail(second!);
    await world.work.finish(third!);
    const heard = await events.until(({ event, data }) => event === "job" && data.job!.ended_at !== null);
    expect(heard.filter(({ event }) => event === "item").map(({ data }) => data)).toEqual([
      { index: 0, state: "done", error: null },
      { index: 1, state: "failed", error: { code: "NUMERIC_FAILURE", message: "NaN at step 3", attempts: 1 } },
      { index: 2, state: "done", error: null },
    ]);
    const ids = heard.map((event) => event.id);
    expect(ids).toEqual([...ids].sort((a, b) => a - b));
    expect(heard.at(-1)!.data.job).toMatchObject({ status: "done", sequence: ids.at(-1) });
    events.close();
  });

  it("goes on after the event that a reader has, with each that it missed once", async () => {
    const id = await submitted(6);
    const events = await listen(id);
    await world.work.make(2);
    const heard = await events.until(({ event, data }) => event === "item" && data.index === 1);
    events.close();

    await world.work.make(2);
    await world.ask(`/v1/jobs/${id}/pause`, { method: "POST" });
    const again = await listen(id, heard.at(-1)!.id);
    const missed = await again.until(({ event }) => event === "job");
    expect(missed.filter(({ event }) => event === "item").map(({ data }) => data.index)).toEqual([2, 3]);
    expect(missed.at(-1)!.data.job).toMatchObject({ status: "paused", counts: { done: 4 } });

    await world.ask(`/v1/jobs/${id}/resume`, { method: "POST" });
    await world.work.make(2);
    const rest = await again.until(({ event, data }) => event === "job" && data.job!.ended_at !== null);
    expect(rest.filter(({ event }) => event === "item").map(({ data }) => data.index)).toEqual([4, 5]);
    again.close();
  });

  it("says so where what a reader has is not in the log, and begins anew", async () => {
    const id = await submitted(1);
    const events = await listen(id, 999_999);
    expect(await events.next()).toMatchObject({
      event: "reset",
      data: { message: expect.stringContaining("event 999999 is not in the log"), job: { id } },
    });
    events.close();
    const answer = await world.ask(`/v1/jobs/${id}/events`, { headers: { "last-event-id": "seven" } });
    expect(answer.status).toBe(400);
  });

  it("ends with the service, which waits for nobody who would listen for ever", async () => {
    const stopping = await startJobs();
    const body = '{"items":[{"prompt":"a mug"}]}';
    const sent = await stopping.ask("/v1/jobs", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
    });
    const answer = await stopping.ask(`/v1/jobs/${((await sent.json()) as JobJson).id}/events`);
    const reader = answer.body!.getReader();
    await reader.read();
    const closed = stopping.app.close();
    while (!(await reader.read()).done);
    await closed;
    await stopping.stop();
  });

  it("ends with the job's deletion", async () => {
    const id = await submitted(1);
    const events = await listen(id);
    await events.next();
    await world.ask(`/v1/jobs/${id}`, { method: "DELETE" });
    await events.end();
  });

  async function submitted(items: number): Promise<string> {
    const body = JSON.stringify({ items: Array.from({ length: items }, (_, i) => ({ prompt: `mug ${i}` })) });
    const answer = await world.ask("/v1/jobs", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
    });
    return ((await answer.json()) as JobJson).id;
  }

  async function listen(id: string, after?: number) {
    const gone = new AbortController();
    const answer = await world.ask(`/v1/jobs/${id}/events`, {
      headers: after === undefined ? {} : { "last-event-id": String(after) },
      signal: gone.signal,
    });
    expect(answer.headers.get("content-type")).toBe("text/event-stream");
    const events = eventsIn(answer.body!);
    const next = async () => (await events.next()).value as HeardEvent;
    return {
      next,
      until: async (holds: (event: HeardEvent) => boolean) => {
        const heard: HeardEvent[] = [];
        do heard.push(await next());
        while (!holds(heard.at(-1)!));
        return heard;
      },
      end: async () => {
        while (!(await events.next()).done);
      },
      close: () => gone.abort(),
    };
  }
});

describe("a reader that is slow", () => {
  it("has the log read as it takes it, and is told of every picture", async () => {
    const { stream, log, say } = streamOf(20_000);
    void stream.run({ after: 0, lost: false });
    await sleep(50);
    const readBefore = log.read;
    expect(readBefore).toBeLessThan(1_000); // some 16 KiB of events

    for (let sequence = 20_001; sequence <= 20_050; sequence++) say(sequence);
    const indexes: number[] = [];
    for await (const { event, data } of eventsIn(stream.readable)) {
      if (event === "item") indexes.push(data.index!);
      if (indexes.length === 20_050) break;
    }
    expect(indexes).toEqual(Array.from({ length: 20_050 }, (_, i) => i));
  });

  it("misses nothing that happens between the end of the log and the news", async () => {
    const { stream, log, say } = streamOf(1);
    log.atEnd = () => {
      log.atEnd = undefined;
      say(2);
    };
    await stream.run({ after: 1, lost: false });
    say(3);
    const indexes: number[] = [];
    for await (const { event, data } of eventsIn(stream.readable)) {
      if (event === "item") indexes.push(data.index!);
      if (indexes.at(-1) === 2) break;
    }
    expect(indexes).toEqual([1, 2]);
  });

  it("falls back to the log once the news come faster than it takes them", async () => {
    const { stream, log, say } = streamOf(0);
    await stream.run();
    for (let sequence = 1; sequence <= 5_000; sequence++) say(sequence);
    expect(stream.readable.readableLength).toBeLessThan(64 * 1024);
    const indexes: number[] = [];
    for await (const { event, data } of eventsIn(stream.readable)) {
      if (event === "item") indexes.push(data.index!);
      if (indexes.length === 5_000) break;
    }
    expect(indexes).toEqual(Array.from({ length: 5_000 }, (_, i) => i));
    expect(log.read).toBeGreaterThan(4_000);
  });
});

interface HeardEvent {
  readonly id: number;
  readonly event: string;
  readonly data: {
    readonly index?: number;
    readonly job?: JobJson;
    readonly message?: string;
  };
}

async function* eventsIn(body: AsyncIterable<Uint8Array>): AsyncGenerator<HeardEvent> {
  let text = "";
  for await (const chunk of body) {
    text += Buffer.from(chunk).toString();
    const blocks = text.split("\n\n");
    text = blocks.pop()!;
    for (const block of blocks) {
      const [, id, event, data] = /^id: (\d+)\nevent: (\w+)\ndata: (.*)$/.exec(block) ?? [];
      if (event !== undefined) yield { id: Number(id), event, data: JSON.parse(data!) as HeardEvent["data"] };
    }
  }
}

/** Of a job whose log has `events` outcomes, one of each item, and gets more as the test says. */
function streamOf(events: number) {
  const id = "job_1";
  const log = { length: events, read: 0, atEnd: undefined as (() => void) | undefined };
  let hear: (news: JobNews) => void = () => {};
  const record = { id, itemCount: 100_000, source: { skipped: [] } } as unknown as JobView["record"];
  const view = () => ({ record, sequence: log.length, status: "running", counts: {} }) as unknown as JobView;
  const stream = new JobEventStream({
    id,
    clock: systemClock,
    jobs: {
      get: () => ({
        ...view(),
        record: { ...record, webhook: null, createdAtMs: 0 } as JobView["record"],
        startedAtMs: null,
        endedAtMs: null,
      }),
      states: () => undefined,
      onChange: (listener) => {
        hear = listener;
        return () => {};
      },
    },
    events: {
      read: async function* (_id, after = 0): AsyncGenerator<LoggedEvent> {
        for (let sequence = after + 1; sequence <= log.length; sequence++) {
          log.read++;
          yield { sequence, event: done(sequence - 1) };
        }
        log.atEnd?.();
      },
    },
  });
  const say = (sequence: number) => {
    log.length = sequence;
    hear({ type: "item", job: view(), itemIndex: sequence - 1, state: "done", sequence });
  };
  return { stream, log, say };
}

function done(itemIndex: number) {
  return create(JobEventSchema, {
    jobId: "job_1",
    event: { case: "outcome", value: { itemIndex, result: { case: "done", value: {} } } },
  });
}
