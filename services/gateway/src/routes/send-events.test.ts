import { connect } from "node:net";
import { ManualClock, ServingError, systemClock } from "@atelier/core";
import { EventStream, errorBody } from "@atelier/http";
import { Stage } from "@atelier/proto";
import Fastify from "fastify";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";
import { sendEvents } from "./send-events.ts";

describe("POST /generate with Accept: text/event-stream", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], { ATELIER_RETRY_WAIT_MS: "200" });
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  it("tells in order that the request was accepted, how far it is, and what came of it", async () => {
    const progress = [
      { stage: Stage.DENOISE, stepsDone: 10, imageIndex: 1 },
      { stage: Stage.IMAGE_DECODE, stepsDone: 10, imageIndex: 1 },
    ];
    worker.next({ kind: "answer", progress });
    const response = await ask({ prompt: "x", seed: 7, steps: 5, num_images: 2 });
    expect(response.status).toBe(200);
    expect(Object.fromEntries(response.headers)).toMatchObject({
      "content-type": "text/event-stream",
      "cache-control": "no-store",
      "x-accel-buffering": "no",
      "x-atelier-seed": "7",
    });
    const { events } = await eventsOf(response);
    const common = { steps_total: 10 };
    expect(events.slice(0, -1)).toEqual([
      {
        event: "accepted",
        data: { request_id: response.headers.get("x-atelier-request-id"), seed: 7, model: "atelier-tiny", ...common },
      },
      { event: "progress", data: { stage: "denoise", steps_done: 1, image_index: 0, ...common } },
      { event: "progress", data: { stage: "denoise", steps_done: 10, image_index: 1, ...common } },
      { event: "progress", data: { stage: "image_decode", steps_done: 10, image_index: 1, ...common } },
    ]);
    expect(events.at(-1)!.event).toBe("completed");
  });

  it("shows pictures on their way when asked to", async () => {
    const previews = [Uint8Array.of(1, 2), Uint8Array.of(3)];
    const progress = [
      { stage: Stage.DENOISE, stepsDone: 10, imageIndex: 0, preview: previews[0]! },
      { stage: Stage.DENOISE, stepsDone: 11, imageIndex: 1, preview: previews[1]! },
      { stage: Stage.IMAGE_DECODE, stepsDone: 12, imageIndex: 1 },
    ];
    const released = Promise.withResolvers<void>();
    setTimeout(released.resolve, 300);
    worker.next({ kind: "answer", progress, after: released.promise });
    const came = worker.nextRequest();
    const { events } = await eventsOf(await ask({ prompt: "x", steps: 6, num_images: 2, preview_every: 5 }));
    await came;
    expect(worker.requests.at(-1)!.previewEverySteps).toBe(5);
    expect(events.filter(({ event }) => event === "preview").map(({ data }) => data)).toEqual([
      { image_index: 0, steps_done: 10, steps_total: 12, image: "AQI=" },
      { image_index: 1, steps_done: 11, steps_total: 12, image: "Aw==" },
    ]);
  });

  it("refuses previews where there is no stream to show them in", async () => {
    const refused = await ask({ prompt: "x", preview_every: 5 }, { accept: "application/json" });
    const { error } = errorBody.strict().parse(await refused.json());
    expect([refused.status, error.field]).toEqual([400, "preview_every"]);
    expect(error.message).toContain("preview_every is 5, but previews come in a stream of events only");
  });

  it.each([
    { prompt: "x", seed: 7, format: "webp", quality: 5 },
    { prompt: "国潮风T恤", seed: 7, num_images: 3 },
  ])("ends with the very text of the plain answer: %j", async (body) => {
    const plain = await (await ask(body, { accept: "application/json" })).text();
    const stream = await (await ask(body)).text();
    expect(stream.endsWith(`event: completed\ndata: ${plain}\n\n`)).toBe(true);
  });

  it("refuses what cannot begin with an ordinary error", async () => {
    const invalid = await ask({ prompt: "x", steps: 0 });
    expect([invalid.status, invalid.headers.get("content-type")]).toEqual([400, "application/json; charset=utf-8"]);

    worker.next({ kind: "fail", error: new ServingError("OVERLOADED", "8 requests wait here") });
    const overloaded = await ask({ prompt: "x" });
    expect([overloaded.status, overloaded.headers.get("retry-after")]).toEqual([503, "2"]);
    expect(errorBody.strict().parse(await overloaded.json()).error.code).toBe("OVERLOADED");
    expect(gateway.inFlight.count).toBe(0);
  });

  it("tells of a worker lost on the way with the ordinary error body, and counts it as the failure that it is", async () => {
    worker.next({ kind: "die" });
    const response = await ask({ prompt: "x" });
    const { events } = await eventsOf(response);
    expect(events.map(({ event }) => event)).toEqual(["accepted", "progress", "error"]);
    const { error } = errorBody.strict().parse(events.at(-1)!.data);
    expect(error).toMatchObject({ code: "WORKER_LOST", request_id: response.headers.get("x-atelier-request-id") });
    expect(error.message).toContain("can be sent again");
    const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
    expect(metrics).toMatch(/requests_total\{[^}]*route="\/generate"[^}]*status="502"[^}]*\} 1/);

    await worker.revive();
    await gateway.until(allReady);
  });

  it("takes the worker's call back when the reader goes away", async () => {
    worker.next({ kind: "hang" });
    const controller = new AbortController();
    const response = await ask({ prompt: "x" }, {}, controller.signal);
    const reader = response.body!.getReader();
    await reader.read();
    const before = worker.cancelled.length;
    controller.abort();
    await eventually(() => worker.cancelled.length > before);
    expect(gateway.inFlight.count).toBe(0);
    expect(gateway.bugs).toEqual([]);
  });

  it("keeps a result that is larger than every buffer for a reader that is slow to come for it", async () => {
    const data = new Uint8Array(12 * 1024 * 1024).fill(7);
    worker.next({ kind: "answer", data });
    const body = JSON.stringify({ prompt: "x" });
    const socket = connect(Number(new URL(gateway.url).port), "127.0.0.1");
    socket.pause();
    const came = worker.nextRequest();
    socket.write(
      `POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: text/event-stream\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await came;
    await eventually(() => gateway.inFlight.count === 0);
    let bytes = 0;
    let tail = "";
    socket.setEncoding("latin1").on("data", (text: unknown) => {
      bytes += (text as string).length;
      tail = (tail + text).slice(-64);
    });
    socket.resume();
    await new Promise((resolve) => socket.once("end", resolve));
    expect(bytes).toBeGreaterThan((data.length * 4) / 3);
    expect(tail).toMatch(/\}\n\n\r\n0\r\n\r\n$/);
  });

  const ask = (body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal) =>
    fetch(`${gateway.url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "text/event-stream", ...headers },
      body: JSON.stringify(body),
      ...(signal && { signal }),
    });
});

describe("sendEvents to a caller who would be told that it waits", () => {
  it("begins with queued where no worker accepts in time", async () => {
    const { response, settle } = await asked({ queuedAfterMs: 20 });
    const answer = await response;
    expect(answer.status).toBe(200);
    settle.reject(new ServingError("NO_WORKER", "none came"));
    expect((await eventsOf(answer)).events.map(({ event }) => event)).toEqual(["queued", "error"]);
  });

  it("answers what fails before that with a status of its own", async () => {
    const { response, settle } = await asked({ queuedAfterMs: 10_000 });
    settle.reject(new ServingError("NO_WORKER", "none came"));
    expect((await response).status).toBe(500); // fastify's own, for there is no error handler of ours here
  });

  async function asked({ queuedAfterMs }: { queuedAfterMs: number }) {
    const settle = Promise.withResolvers<never>();
    const app = Fastify();
    const fail = () => ({ error: { code: "NO_WORKER", message: "none came", request_id: "gen_1" } });
    const called = Promise.withResolvers<void>();
    app.get("/", (_request, reply) => {
      const generate = () => {
        called.resolve();
        return settle.promise;
      };
      return sendEvents(reply, {
        clock: systemClock,
        id: "gen_1",
        queuedAfterMs,
        generate,
        completed: () => ({}),
        fail,
      });
    });
    const url = await app.listen({ host: "127.0.0.1", port: 0 });
    onTestFinished(() => app.close());
    const response = fetch(url);
    await called.promise;
    return { response, settle };
  }
});

describe("EventStream", () => {
  it("says something every 15 s to keep the connection alive, until it ends", () => {
    const clock = new ManualClock();
    const stream = new EventStream(clock, () => {});
    clock.advance(45_000);
    expect(stream.readable.read()?.toString()).toBe(": keep-alive\n\n".repeat(3));
    stream.end();
    clock.advance(45_000);
    expect(stream.readable.read()).toBeNull();
  });

  it("says when its reader is slow and when that is over, and adds no keep-alives to what waits", async () => {
    const clock = new ManualClock();
    const drained = Promise.withResolvers<void>();
    const stream = new EventStream(clock, drained.resolve);
    let sent = 0;
    while (stream.send("progress", { filler: "x".repeat(1_000) })) sent += 1;
    expect(sent).toBeGreaterThan(0);
    expect(sent).toBeLessThan(100);
    clock.advance(45_000);
    let text = "";
    stream.readable.on("data", (chunk) => {
      text += chunk;
    });
    await drained.promise;
    stream.end();
    await new Promise((resolve) => stream.readable.once("end", resolve));
    expect(text).not.toContain("keep-alive");
  });

  it("takes what is sent after its reader went away for nothing", () => {
    const stream = new EventStream(new ManualClock(), () => {});
    stream.readable.destroy();
    expect(stream.send("completed", {})).toBe(false);
    stream.end();
  });
});

interface ReadEvent {
  readonly event: string;
  readonly data: unknown;
}

async function eventsOf(response: Response): Promise<{ events: readonly ReadEvent[] }> {
  const blocks = (await response.text()).split("\n\n");
  expect(blocks.pop()).toBe("");
  const events = blocks.map((block) => {
    const [, event, data] = /^event: (\w+)\ndata: (.*)$/.exec(block)!;
    return { event: event!, data: JSON.parse(data!) as unknown };
  });
  return { events };
}

async function eventually(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}
