import { ImageFormat, PriorityClass } from "@atelier/proto";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { type GenerationReply, generationReply } from "../dialects/generations.ts";
import { generationEvent } from "../dialects/generations-events.ts";
import { FakeWorker, PICTURE } from "../testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("POST /v1/generations", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address]);
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  it("answers with the pictures, each with its seed and size, and the receipt", async () => {
    const response = await ask({
      prompt: "a red mug",
      seed: 7,
      num_images: 2,
      width: 256,
      height: 320,
      format: "webp",
    });
    expect(response.status).toBe(200);
    const reply = (await response.json()) as GenerationReply;
    expect(generationReply.strict().parse(reply)).toEqual(reply);
    expect(reply.id).toMatch(/^gen_[\w-]{16}$/);
    const picture = { b64_json: Buffer.from(PICTURE).toString("base64"), media_type: "image/webp" };
    expect(reply.images).toEqual([
      { ...picture, width: 256, height: 320, seed: 7 },
      { ...picture, width: 256, height: 320, seed: 8 },
    ]);
    expect(reply.receipt).toMatchObject({ prompt: "a red mug", seed: 7, num_images: 2, worker_id: "w1" });
    expect(worker.requests.at(-1)?.format).toBe(ImageFormat.WEBP);
  });

  it("spaces the noise levels by Karras et al. where that is asked for", async () => {
    await ask({ prompt: "x", sampler: "unipc", karras_sigmas: true });
    expect(worker.requests.at(-1)?.parameters?.karrasSigmas).toBe(true);
    await ask({ prompt: "x", sampler: "unipc" });
    expect(worker.requests.at(-1)?.parameters?.karrasSigmas).toBe(false);
  });

  it("puts a request in the class that it names", async () => {
    await ask({ prompt: "x", priority: "bulk" });
    expect(worker.requests.at(-1)?.order?.priorityClass).toBe(PriorityClass.BULK);
    await ask({ prompt: "x" });
    expect(worker.requests.at(-1)?.order?.priorityClass).toBe(PriorityClass.INTERACTIVE);
  });

  it("carries a deadline to the worker, and gives up when it has passed", async () => {
    worker.next({ kind: "hang" });
    const sentAtMs = Date.now();
    const response = await ask({ prompt: "x", deadline_ms: 300 });
    expect(await refusal(response)).toMatchObject({ status: 504, code: "DEADLINE_EXCEEDED" });
    const deadlineMs = worker.deadlines.get(worker.requests.at(-1)!.requestId)!;
    expect(deadlineMs).toBeGreaterThanOrEqual(sentAtMs + 300);
    expect(deadlineMs).toBeLessThan(sentAtMs + 5_000);
  });

  it.each([
    [{ prompt: "x", guidance: 3 }, "guidance", "unknown field"],
    [
      { prompt: "x", cache: "maybe" },
      "cache",
      'cache is "maybe"; it must be one of default, refresh, off, approximate',
    ],
    [{ prompt: "x", priority: "urgent" }, "priority", "one of interactive, standard, bulk"],
    [{ prompt: "x", deadline_ms: 0 }, "deadline_ms", "a whole number from 1 to 3600000"],
    [{ prompt: "x", loras: [{ name: "brand", weight: 9 }] }, "loras[0].weight", "a number from -2 to 2"],
    [{ prompt: "x", loras: [{ name: "nobody-has-it" }] }, "loras", "nobody-has-it"],
    [{ prompt: "x", preview_every: 2 }, "preview_every", "stream of events"],
  ])("refuses %j by name", async (body, field, message) => {
    const refused = await refusal(await ask(body));
    expect(refused).toMatchObject({ status: 400, code: "INVALID_REQUEST", field });
    expect(refused.message).toContain(message);
  });

  it("answers with the picture's own bytes, its receipt in a header that any proxy carries", async () => {
    const response = await ask({ prompt: "国潮\r\nx-evil: 1", negative_prompt: "", seed: 3 }, { accept: "image/webp" });
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("image/webp");
    expect(Buffer.from(await response.arrayBuffer())).toEqual(Buffer.from(PICTURE));
    const header = response.headers.get("x-atelier-receipt")!;
    expect(header).toMatch(/^[\w-]{1,4096}$/);
    const receipt = JSON.parse(Buffer.from(header, "base64url").toString());
    expect(receipt).toMatchObject({ seed: 3, model_digest: "sha256:00", sampler: "dpmpp_2m", worker_id: "w1" });
    expect(receipt).not.toHaveProperty("prompt");
    expect(response.headers.has("x-evil")).toBe(false);
  });

  it("times each stage, the gateway's own share and the whole in Server-Timing", async () => {
    const response = await ask({ prompt: "x", seed: 1 });
    const entries = response.headers.get("server-timing")!.split(", ");
    expect(entries.map((entry) => entry.split(";")[0])).toEqual([
      "cache",
      "queue",
      "text_encode",
      "denoise",
      "image_decode",
      "gateway",
      "total",
    ]);
    expect(Number(/total;dur=([\d.]+)/.exec(entries.at(-1)!)![1])).toBeGreaterThan(0);
  });

  it("tells of a generation on its way under its id, and ends with the JSON answer", async () => {
    const events = await eventsOf(await ask({ prompt: "x", seed: 7, steps: 5 }, { accept: "text/event-stream" }));
    expect(events.map(({ event }) => event)).toEqual(["accepted", "progress", "completed"]);
    for (const event of events) expect(generationEvent.parse(event)).toEqual(event);
    const completed = events.at(-1)!.data as GenerationReply;
    expect(completed.images).toHaveLength(1);
    expect(events[0]!.data).toMatchObject({ request_id: completed.id, seed: 7, steps_total: 5 });
  });

  const ask = (body: unknown, headers: Record<string, string> = {}) =>
    fetch(`${gateway.url}/v1/generations`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
    });
});

describe("what POST /v1/generations says of the caches", () => {
  it("is minded: an earlier answer, made anew and kept, made anew and not kept", async () => {
    const worker = await FakeWorker.start();
    const gateway = await startGateway([worker.address], {
      ATELIER_CACHE_SCOPE: "tenant",
      ATELIER_CACHE_MIN_ASKS: "1",
    });
    onTestFinished(async () => {
      await gateway.stop();
      await worker.stop();
    });
    await gateway.until(allReady);
    const outcome = async (body: object, headers: Record<string, string> = {}) => {
      const response = await fetch(`${gateway.url}/v1/generations`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: JSON.stringify({ prompt: "a red mug", seed: 7, ...body }),
      });
      const { receipt } = (await response.json()) as GenerationReply;
      expect(response.headers.get("x-atelier-cache")).toBe(receipt.cache);
      const timed = response.headers
        .get("server-timing")!
        .split(", ")
        .map((entry) => entry.split(";")[0]);
      expect(timed.includes("denoise")).toBe(receipt.cache !== "hit");
      return receipt.cache;
    };
    expect(await outcome({ cache: "off" })).toBe("bypass");
    expect(await outcome({})).toBe("miss"); // the one before was not kept
    expect(await outcome({})).toBe("hit");
    expect(await outcome({ prompt: "new", cache: "refresh" })).toBe("bypass");
    expect(await outcome({ prompt: "new", cache: "default" })).toBe("hit"); // the one before was kept
    expect(await outcome({}, { "cache-control": "no-cache" })).toBe("bypass");
    expect(await outcome({ cache: "default" }, { "cache-control": "no-cache" })).toBe("hit"); // the body counts
    expect(worker.requests).toHaveLength(4);
  });
});

async function refusal(response: Response) {
  const { error } = (await response.json()) as { error: { code: string; message: string; field?: string } };
  return { status: response.status, ...error };
}

async function eventsOf(response: Response): Promise<{ event: string; data: unknown }[]> {
  const blocks = (await response.text()).trimEnd().split("\n\n");
  return blocks.map((block) => {
    const [, event, data] = /^event: (\w+)\ndata: (.*)$/.exec(block)!;
    return { event: event!, data: JSON.parse(data!) as unknown };
  });
}
