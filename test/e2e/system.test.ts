import { join } from "node:path";
import { reflectedClient } from "@atelier/gateway/testing/reflected-client";
import { PromptTokenizer, parsePrompt } from "@atelier/worker";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ClipPair } from "../support/clip-pair.ts";
import { type RunningSystem, startSystem } from "../support/running-system.ts";

const BUNDLE = join(import.meta.dirname, "../../deploy/models/atelier-tiny");
const QUICK = { width: 256, height: 256, steps: 12, seed: 7 };

let system: RunningSystem;
let clip: ClipPair;

beforeAll(async () => {
  const tokenizer = await PromptTokenizer.load(join(BUNDLE, "tokenizer"));
  clip = await ClipPair.load((text) =>
    BigInt64Array.from(tokenizer.tokenize(parsePrompt(text)).chunks[0]!.ids, BigInt),
  );
  system = await startSystem();
});

afterAll(async () => {
  await system?.stop();
});

describe("the whole system on one machine", () => {
  it("answers the line that it prints with a PNG that shows what the Chinese prompt says", async () => {
    const response = await post({ prompt: "国潮风T恤, 白色背景", seed: 3 }, { accept: "image/png" });
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("image/png");
    const picture = new Uint8Array(await response.arrayBuffer());
    expect(await sharp(picture).metadata()).toMatchObject({ format: "png", width: 512, height: 512 });
    expect(await shown(picture)).toBe("T恤");
  });

  it("shows the product of each prompt, in both languages", async () => {
    const prompts = {
      马克杯: "a blue mug on a white background",
      雨伞: "黄色雨伞，白色背景",
      沙发: "an orange sofa",
      灯笼: "红色灯笼",
    };
    const seen = await Promise.all(
      Object.values(prompts).map(async (prompt) =>
        shown(Buffer.from((await image({ prompt, ...QUICK, steps: 25 })).image, "base64")),
      ),
    );
    expect(seen).toEqual(Object.keys(prompts));
  });

  it("gives the same pixels for a seed, alone and beside other requests", async () => {
    const request = { prompt: "a red teapot", ...QUICK };
    const alone = await image(request);
    const [again, other] = await Promise.all([
      image(request),
      image({ ...request, seed: 8, steps: 9, sampler: "euler_a", guidance_scale: 1 }),
      image({ ...request, prompt: "绿色茶壶" }),
    ]);
    expect(again.image).toBe(alone.image);
    expect(other.image).not.toBe(alone.image);
  });

  it("answers over gRPC with the same picture", async () => {
    const request = { prompt: "a red teapot", ...QUICK };
    const [, address] = /for gRPC, (\S+:\d+)/.exec(system.output())!;
    const client = await reflectedClient(address!, "atelier.v1.Generation");
    const call = client["Create"]!(request) as AsyncIterable<{ event: string; image?: { data: Buffer } }>;
    const events = [];
    for await (const event of call) events.push(event);
    client.close();
    expect(events.at(-1)!.event).toBe("completed");
    const made = events.find(({ event }) => event === "image")!.image!.data;
    expect(made.toString("base64")).toBe((await image(request)).image);
  });

  it("replays a receipt", async () => {
    const first = await image({ prompt: "紫色花瓶", width: 256, height: 320, steps: 8 });
    const { prompt, negative_prompt, width, height, steps, guidance_scale, sampler, seed, model } = first.receipt;
    const again = await image({ prompt, negative_prompt, width, height, steps, guidance_scale, sampler, seed, model });
    expect(again.image).toBe(first.image);
    expect(again.receipt).toMatchObject({ embeddings_cached: true, batch_difference: 0 });
    // A share of the device is no more than the time that it took.
    const times = first.receipt["times"] as Record<"denoise_ms" | "image_decode_ms", number>;
    expect(first.receipt["device_ms"]).toBeGreaterThan(0);
    expect(first.receipt["device_ms"]).toBeLessThanOrEqual(times.denoise_ms + times.image_decode_ms + 1);
  });

  it("names the two passes of a picture above the model's own size", async () => {
    const { receipt } = await image({ prompt: "a pink dress", width: 512, height: 512, steps: 6 });
    expect(receipt["hires_fix"]).toMatchObject({ native_width: 256, native_height: 256 });
    expect(receipt["simulated"]).toBe(false);
  });

  it.each(["jpeg", "webp"])("encodes %s", async (format) => {
    const { image: encoded } = await image({ prompt: "a mug", ...QUICK, format });
    expect((await sharp(Buffer.from(encoded, "base64")).metadata()).format).toBe(format);
  });
});

describe("what is wrong is refused at the door, by name", () => {
  const good = { prompt: "a mug", ...QUICK };
  const cases: [string, unknown, number, RegExp][] = [
    ["an unknown field", { ...good, widht: 256 }, 400, /widht/],
    ["a wrong type", { ...good, steps: "25" }, 400, /steps/],
    ["an empty prompt", { ...good, prompt: "" }, 400, /prompt/],
    ["a prompt of 100 KB", { ...good, prompt: "杯".repeat(34_000) }, 400, /prompt/],
    ["a prompt of NUL bytes", { ...good, prompt: "\0\0" }, 400, /prompt/],
    ["a lone surrogate", { ...good, prompt: "mug \ud800" }, 400, /prompt/],
    ["width 0", { ...good, width: 0 }, 400, /width is 0/],
    ["width 7", { ...good, width: 7 }, 400, /width is 7/],
    ["width 513", { ...good, width: 513 }, 400, /width is 513.*multiple of/],
    ["width 1e9", { ...good, width: 1e9 }, 400, /width is 1000000000/],
    ["steps 0", { ...good, steps: 0 }, 400, /steps/],
    ["steps 1e6", { ...good, steps: 1e6 }, 400, /steps/],
    ["an unknown model", { ...good, model: "sd9" }, 404, /sd9.*atelier-tiny/],
  ];

  it.each(cases)("%s", async (_name, body, status, message) => {
    const response = await post(body);
    const { error } = (await response.json()) as { error: { message: string; request_id: string } };
    expect(response.status).toBe(status);
    expect(error.message).toMatch(message);
    expect(error.message.length).toBeLessThan(500);
  });

  it("a body that is not JSON, and one of 50 MB", async () => {
    expect((await postText("{prompt:")).status).toBe(400);
    const large = await postText(JSON.stringify({ prompt: "x".repeat(50_000_000) })).catch((error: Error) => error);
    // The server may close the connection before the client has sent all of it.
    if (large instanceof Response) expect(large.status).toBe(413);
    else expect(String(large.cause)).toMatch(/EPIPE|ECONNRESET|other side closed/);
  });

  it("and leaves the server and a request that was under way unharmed", async () => {
    const underWay = image({ ...good, steps: 25 });
    await Promise.all(cases.map(([, body]) => post(body)));
    expect((await underWay).width).toBe(256);
  });
});

describe("a worker that dies", () => {
  it("is started again, and finishes the request that it held", async () => {
    const [pid] = await system.workerPids();
    const held = image({ prompt: "a sofa", width: 512, height: 512, steps: 100, seed: 5 });
    await sleep(1_500);
    process.kill(pid!, "SIGKILL");
    expect((await held).receipt).toMatchObject({ seed: 5, steps: 100, attempts: 2 });

    await until(
      async () => (await fetch(`${system.url}/readyz`)).status === 200 && (await system.workerPids())[0] !== pid,
    );
    expect((await image({ prompt: "a mug", ...QUICK })).width).toBe(256);
  });
});

describe("stopping", () => {
  it("ends everything with exit code 0 on Ctrl-C", async () => {
    const pids = await system.workerPids();
    expect(await system.stop()).toBe(0);
    for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow(/ESRCH/);
  });
});

interface Answer {
  readonly image: string;
  readonly width: number;
  readonly receipt: Record<string, unknown>;
}

async function image(body: object): Promise<Answer> {
  const response = await post(body);
  expect(
    response.status,
    await response
      .clone()
      .text()
      .then((text) => text.slice(0, 300)),
  ).toBe(200);
  return (await response.json()) as Answer;
}

function post(body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return postText(JSON.stringify(body), headers);
}

function postText(body: string, headers: Record<string, string> = {}): Promise<Response> {
  const init = { method: "POST", body, headers: { "content-type": "application/json", ...headers } };
  return fetch(`${system.url}/generate`, { ...init, signal: AbortSignal.timeout(120_000) });
}

const PRODUCTS = [
  "T恤",
  "连衣裙",
  "卫衣",
  "运动鞋",
  "帽子",
  "手提包",
  "背包",
  "马克杯",
  "茶壶",
  "花瓶",
  "灯笼",
  "月饼",
  "沙发",
  "雨伞",
];

async function shown(picture: Uint8Array): Promise<string> {
  return PRODUCTS[await clip.best(picture, PRODUCTS)]!;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (await condition().catch(() => false)) return;
    await sleep(150);
  }
  throw new Error("the condition did not come true within 30 s");
}
