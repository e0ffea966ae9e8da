import { connect } from "node:net";
import { invariant, ServingError } from "@atelier/core";
import { errorBody } from "@atelier/http";
import { ImageFormat, Sampler } from "@atelier/proto";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type GenerateReply, generateReply } from "./dialects/generate.ts";
import { FakeWorker, fakeModel, PICTURE } from "./testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "./testing/start-gateway.ts";

describe("POST /generate", () => {
  const { ask, worker } = gatewayWithOneWorker();

  it("makes a picture from a prompt alone, with the documented defaults and the model's", async () => {
    const response = await ask({ prompt: "国潮风T恤, 白色背景" });
    expect(response.status).toBe(200);
    const reply = (await response.json()) as GenerateReply;
    expect(generateReply.strict().parse(reply)).toEqual(reply);
    expect(Buffer.from(reply.image, "base64")).toEqual(Buffer.from(PICTURE));
    expect(reply).toMatchObject({
      format: "png",
      media_type: "image/png",
      width: 512,
      height: 512,
      model: "atelier-tiny",
    });
    expect(reply).not.toHaveProperty("images");
    expect(worker().requests.at(-1)?.parameters).toMatchObject({
      prompt: "国潮风T恤, 白色背景",
      negativePrompt: "低分辨率, 模糊",
      width: 512,
      height: 512,
      steps: 25,
      guidanceScale: 2.5,
      sampler: Sampler.DPMPP_2M,
      seed: BigInt(reply.seed),
      numImages: 1,
    });
  });

  it("passes on the picture to start from, and says in the receipt that there was one", async () => {
    const png = Buffer.from("89504e470d0a1a0a00", "hex");
    const response = await ask({ prompt: "a mug", init_image: png.toString("base64"), strength: 0.25 });
    const { receipt } = (await response.json()) as GenerateReply;
    expect(receipt.strength).toBe(0.25);
    const sent = worker().requests.at(-1)!;
    expect(Buffer.from(sent.initImage).equals(png)).toBe(true);
    expect(sent.parameters?.strength).toBe(0.25);

    const from = await ask({ prompt: "a mug", strength: 0.25 });
    expect([from.status, ((await from.json()) as { error: { field: string } }).error.field]).toEqual([400, "strength"]);
  });

  it("passes everything on that the caller chose", async () => {
    const body = {
      prompt: "a mug",
      negative_prompt: "",
      width: 256,
      height: 320,
      steps: 7,
      seed: Number.MAX_SAFE_INTEGER,
      guidance_scale: 1.5,
      sampler: "euler_a",
      model: "atelier-tiny",
      format: "webp",
      quality: 70,
      num_images: 1,
    };
    const response = await ask(body);
    const { media_type, seed } = (await response.json()) as GenerateReply;
    expect([media_type, seed]).toEqual(["image/webp", Number.MAX_SAFE_INTEGER]);
    expect(worker().requests.at(-1)).toMatchObject({
      format: ImageFormat.WEBP,
      quality: 70,
      parameters: {
        negativePrompt: "",
        width: 256,
        height: 320,
        steps: 7,
        guidanceScale: 1.5,
        sampler: Sampler.EULER_A,
      },
    });
  });

  it("hands the worker's receipt over, and says aloud when no model ran", async () => {
    const response = await ask({ prompt: "x", seed: 7 });
    const { receipt } = (await response.json()) as GenerateReply;
    expect(receipt).toMatchObject({
      model_digest: "sha256:00",
      worker_id: "w1",
      device: "fake",
      simulated: true,
      seed: 7,
      sampler: "dpmpp_2m",
      hires_fix: { native_width: 256, native_height: 256, strength: 0.5, upscale: "bilinear" },
      embeddings_cached: true,
      preemptions: 2,
      batch_difference: 0.5,
      times: { queue_ms: 1, text_encode_ms: 2, denoise_ms: 3, image_decode_ms: 4 },
    });
    expect(response.headers.get("x-atelier-simulated")).toBe("true");

    worker().publish({ simulated: false });
    const real = await ask({ prompt: "x" });
    expect(real.headers.has("x-atelier-simulated")).toBe(false);
    worker().publish({ simulated: true });
  });

  it("returns several pictures in order when several were asked for", async () => {
    const reply = (await (await ask({ prompt: "x", num_images: 3 })).json()) as GenerateReply;
    expect(reply.images).toHaveLength(3);
    expect(reply.images?.[0]).toBe(reply.image);
  });

  it.each([
    ["image/png", "image/png"],
    ["image/jpeg", "image/jpeg"],
    ["image/webp", "image/webp"],
    ["image/*", "image/png"],
  ])("answers Accept: %s with the bytes of the picture", async (accept, type) => {
    const response = await ask({ prompt: "x", seed: 5 }, { accept });
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe(type);
    expect(response.headers.get("x-atelier-seed")).toBe("5");
    expect(Buffer.from(await response.arrayBuffer())).toEqual(Buffer.from(PICTURE));
  });

  it("lets a body's format decide what image/* means", async () => {
    const response = await ask({ prompt: "x", format: "jpeg" }, { accept: "image/*" });
    expect(response.headers.get("content-type")).toBe("image/jpeg");
  });

  it("refuses what no single image file can answer", async () => {
    expect(await refusal(await ask({ prompt: "x", num_images: 2 }, { accept: "image/png" }))).toMatchObject({
      status: 400,
      field: "num_images",
    });
    expect((await refusal(await ask({ prompt: "x", format: "png" }, { accept: "image/webp" }))).status).toBe(406);
    expect((await refusal(await ask({ prompt: "x" }, { accept: "image/avif" }))).status).toBe(406);
  });

  it("names every request: by the caller's id where it is plain, by one of its own otherwise", async () => {
    const own = await ask({ prompt: "x" });
    expect(own.headers.get("x-atelier-request-id")).toMatch(/^req_/);
    const theirs = await ask({ prompt: "x" }, { "x-request-id": "shop-7" });
    expect(theirs.headers.get("x-atelier-request-id")).toBe("shop-7");
    expect(worker().requests.at(-1)?.requestId).toMatch(/^shop-7_/);
  });

  it("gives two requests of one caller's id two ids at the worker", async () => {
    const headers = { "x-request-id": "same" };
    await Promise.all([ask({ prompt: "x" }, headers), ask({ prompt: "x" }, headers)]);
    const [a, b] = worker().requests.slice(-2);
    expect(a?.requestId).not.toBe(b?.requestId);
  });

  it("passes the worker's own refusal on, with its code, message and field", async () => {
    worker().next({ kind: "fail", error: new ServingError("INVALID_REQUEST", "too many words", { field: "prompt" }) });
    expect(await refusal(await ask({ prompt: "x" }))).toMatchObject({
      status: 400,
      code: "INVALID_REQUEST",
      message: "too many words",
      field: "prompt",
    });
    worker().next({ kind: "fail", error: new ServingError("OUT_OF_MEMORY", "8 GiB are full") });
    expect(await refusal(await ask({ prompt: "x" }))).toMatchObject({ status: 507, code: "OUT_OF_MEMORY" });
    worker().next({ kind: "fail", error: new ServingError("OVERLOADED", "64 jobs wait") });
    expect(await refusal(await ask({ prompt: "x" }))).toMatchObject({ status: 503, retryAfterS: 2 });
  });

  it("reads a call that the worker dropped, and nobody took back, as the loss of the worker", async () => {
    const dropped = { kind: "fail", error: new ServingError("CANCELLED", "shutting down") } as const;
    worker().next(dropped, dropped, dropped); // as often as it is tried
    expect(await refusal(await ask({ prompt: "x" }))).toMatchObject({ status: 502, code: "WORKER_LOST" });
  });

  it.each(["receipt", "images"] as const)("does not pass off an answer without %s as a good one", async (what) => {
    worker().next({ kind: "leave-out", what });
    expect(await refusal(await ask({ prompt: "x" }))).toMatchObject({ status: 500, code: "INTERNAL" });
  });
});

describe("bad input", () => {
  const { ask, worker, gateway } = gatewayWithOneWorker();

  beforeEach(() => {
    worker().requests.length = 0;
  });

  // Each reaches the gateway as it stands; none reaches the worker; and the next request is served.
  afterEach(async () => {
    expect(worker().requests).toHaveLength(0);
    expect((await ask({ prompt: "still here" })).status).toBe(200);
  });

  it.each<[string, unknown, string, RegExp]>([
    [
      "an unknown field",
      { prompt: "x", stepz: 3 },
      "stepz",
      /unknown field "stepz"; the fields are prompt, negative_prompt/,
    ],
    ["a number as text", { prompt: "x", width: "512" }, "width", /width is "512"; it must be a whole number/],
    ["a text as number", { prompt: 7 }, "prompt", /prompt is 7; it must be a text/],
    ["a null", { prompt: "x", seed: null }, "seed", /seed is null/],
    ["no prompt", {}, "prompt", /prompt is missing/],
    ["an empty prompt", { prompt: "" }, "prompt", /prompt is empty/],
    ["a prompt of 100 KB", { prompt: "x".repeat(100_000) }, "prompt", /100000 characters/],
    ["a prompt of NUL bytes", { prompt: "\0\0\0" }, "prompt", /U\+0000/],
    ["a lone surrogate", '{"prompt":"a\\ud800b"}', "prompt", /surrogate/],
    [
      "a lone surrogate in the negative prompt",
      '{"prompt":"a","negative_prompt":"\\udfff"}',
      "negative_prompt",
      /surrogate/,
    ],
    [
      "width 0",
      { prompt: "x", width: 0 },
      "width",
      /width is 0; it must be a multiple of 8 from 64 to 1024 for atelier-tiny/,
    ],
    ["width 7", { prompt: "x", width: 7 }, "width", /width is 7; .* 64 to 1024/],
    ["width 513", { prompt: "x", width: 513 }, "width", /width is 513; it must be a multiple of 8/],
    ["width 1e9", { prompt: "x", width: 1e9 }, "width", /width is 1000000000; .* 64 to 1024/],
    ["width 1e300", '{"prompt":"x","width":1e300}', "width", /width is 1e\+300/],
    ["width 1e999", '{"prompt":"x","width":1e999}', "width", /width is Infinity/],
    ["too many pixels", { prompt: "x", width: 1024, height: 1024 }, "width", /1048576 pixels; .* at most 786432/],
    ["steps 0", { prompt: "x", steps: 0 }, "steps", /steps is 0; it must be a whole number from 1 to 150/],
    ["steps 1e6", { prompt: "x", steps: 1e6 }, "steps", /steps is 1000000; it must be a whole number from 1 to 150/],
    ["half a step", { prompt: "x", steps: 0.5 }, "steps", /steps is 0.5/],
    ["a negative seed", { prompt: "x", seed: -1 }, "seed", /seed is -1/],
    ["a seed beyond exact numbers", '{"prompt":"x","seed":9007199254740993}', "seed", /from 0 to 9007199254740991/],
    ["an unknown sampler", { prompt: "x", sampler: "magic" }, "sampler", /"magic"; it must be one of dpmpp_2m, .*lcm/],
    ["an unknown format", { prompt: "x", format: "gif" }, "format", /"gif"; it must be one of png, jpeg, webp/],
    ["nine images", { prompt: "x", num_images: 9 }, "num_images", /num_images is 9; .* from 1 to 8/],
    ["more images than the model makes", { prompt: "x", num_images: 8 }, "num_images", /at most 4 for atelier-tiny/],
    ["guidance 1000", { prompt: "x", guidance_scale: 1000 }, "guidance_scale", /from 0 to 50/],
    ["a quality of png", { prompt: "x", quality: 50 }, "quality", /png has none/],
    ["a prototype", '{"prompt":"x","__proto__":{"width":1}}', "__proto__", /unknown field "__proto__"/],
  ])("refuses %s, naming the field", async (_what, body, field, message) => {
    const refused = await refusal(await ask(body));
    expect(refused).toMatchObject({ status: 400, code: "INVALID_REQUEST", field });
    expect(refused.message).toMatch(message);
    expect(refused.message.length).toBeLessThan(300);
  });

  it("refuses an unknown model and lists those that there are", async () => {
    const refused = await refusal(await ask({ prompt: "x", model: "sd-9" }));
    expect(refused).toMatchObject({ status: 404, code: "MODEL_NOT_FOUND", field: "model" });
    expect(refused.message).toContain("atelier-tiny");
  });

  it.each<[string, string | Buffer, RegExp]>([
    ["is not JSON", "{prompt: x}", /not JSON/],
    ["is cut off", '{"prompt":', /not JSON/],
    ["is empty", "", /empty/],
    ["is a list", "[1]", /a list; it must be a JSON object/],
    ["is a million brackets", "[".repeat(1_000_000), /not JSON/],
    ["is Chinese in GBK", Buffer.from([...Buffer.from('{"prompt":"'), 0xb9, 0xfa, ...Buffer.from('"}')]), /not UTF-8/],
  ])("refuses a body that %s", async (_what, body, message) => {
    const refused = await refusal(await ask(body));
    expect(refused).toMatchObject({ status: 400, code: "INVALID_REQUEST" });
    expect(refused.message).toMatch(message);
  });

  it("refuses a body of 50 MB before reading it", async () => {
    const size = 50 * 1024 * 1024;
    const head = `POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${size}\r\n\r\n`;
    const answer = await rawHttp(gateway().url, head);
    expect(answer).toMatch(/^HTTP\/1.1 413 /);
    expect(answer).toContain(
      '"code":"PAYLOAD_TOO_LARGE","message":"the body is larger than 1048576 bytes, which is the limit"',
    );
  });

  it("refuses a body that grows beyond the limit without having said so", async () => {
    const chunk = `100000\r\n${" ".repeat(0x100000)}\r\n`;
    const head =
      "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    const answer = await rawHttp(gateway().url, head + chunk + chunk);
    expect(answer).toMatch(/^HTTP\/1.1 413 /);
    expect(answer).toContain("PAYLOAD_TOO_LARGE");
  });

  it.each(["text/plain", "application/x-www-form-urlencoded", "nonsense"])("refuses content-type %s", async (type) => {
    const refused = await refusal(await ask({ prompt: "x" }, { "content-type": type }));
    expect(refused.status).toBe(415);
    expect(refused.message).toContain(`content-type "${type}" is not read here`);
    expect(refused.message).toContain("application/json");
  });

  it("repeats no more of a content-type than is needed to recognize it", async () => {
    const { message } = await refusal(await ask({ prompt: "x" }, { "content-type": `text/${"x".repeat(5_000)}` }));
    expect(message.length).toBeLessThan(200);
  });

  it("refuses a compressed body", async () => {
    expect((await refusal(await ask({ prompt: "x" }, { "content-encoding": "gzip" }))).status).toBe(415);
  });

  it("answers an unknown route and a wrong method in the same form", async () => {
    expect(await refusal(await fetch(`${gateway().url}/nope`))).toMatchObject({ status: 404, code: "NOT_FOUND" });
    expect((await refusal(await fetch(`${gateway().url}/%zz`))).status).toBe(400);
    const wrong = await fetch(`${gateway().url}/generate?x=1`);
    expect(wrong.headers.get("allow")).toBe("POST");
    expect(await refusal(wrong)).toMatchObject({ status: 405, code: "INVALID_REQUEST" });
  });

  it("answers bytes that are no HTTP, and headers that do not end, in the same form", async () => {
    expect(await rawHttp(gateway().url, "hello\r\n\r\n")).toMatch(/^HTTP\/1.1 400 [\s\S]*"code":"INVALID_REQUEST"/);
    const endless = `GET /healthz HTTP/1.1\r\nx: ${"a".repeat(100_000)}`;
    expect(await rawHttp(gateway().url, endless)).toMatch(/^HTTP\/1.1 431 [\s\S]*headers are too large/);
  });
});

describe("a caller that goes away", () => {
  const { ask, worker, gateway } = gatewayWithOneWorker();

  it("has its call taken back at the worker, and its place freed", async () => {
    worker().next({ kind: "hang" });
    const controller = new AbortController();
    const asked = ask({ prompt: "x" }, {}, controller.signal).catch((error: Error) => error.name);
    await eventually(() => worker().requests.length === 1);
    expect(gateway().inFlight.count).toBe(1);
    controller.abort();
    expect(await asked).toBe("AbortError");
    await eventually(() => worker().cancelled.length === 1);
    expect(worker().cancelled).toEqual([worker().requests[0]?.requestId]);
    await eventually(() => gateway().inFlight.count === 0 && gateway().fleet.views()[0]?.inFlight === 0);
    await eventually(async () => (await metrics(gateway())).includes('route="/generate",method="POST",status="499"'));
  });
});

describe("limits", () => {
  const { ask, worker, gateway } = gatewayWithOneWorker({
    ATELIER_IN_FLIGHT_MAX: "2",
    ATELIER_REQUEST_TIMEOUT_MS: "1500",
  });

  it("refuses what is beyond the generations in flight, with Retry-After, and serves again afterwards", async () => {
    const gate = Promise.withResolvers<void>();
    worker().next({ kind: "answer", after: gate.promise }, { kind: "answer", after: gate.promise });
    const first = [ask({ prompt: "1" }), ask({ prompt: "2" })];
    await eventually(() => gateway().inFlight.count === 2);
    const refused = await refusal(await ask({ prompt: "3" }));
    expect(refused).toMatchObject({ status: 503, code: "OVERLOADED", retryAfterS: 2 });
    gate.resolve();
    expect((await Promise.all(first)).map((response) => response.status)).toEqual([200, 200]);
    expect((await ask({ prompt: "4" })).status).toBe(200);
  });

  it("carries its deadline to the worker, and answers 504 when that passes", async () => {
    worker().next({ kind: "hang" });
    const asked = ask({ prompt: "x" });
    await eventually(() => gateway().inFlight.count === 1);
    const now = Date.now();
    expect(await refusal(await asked)).toMatchObject({ status: 504, code: "DEADLINE_EXCEEDED" });
    const deadline = worker().deadlines.get(worker().requests.at(-1)?.requestId ?? "");
    expect(deadline).toBeGreaterThan(now);
    expect(deadline).toBeLessThanOrEqual(now + 1_600);
    await eventually(() => worker().cancelled.length === 1);
  });
});

describe("workers that come and go", () => {
  const workers: FakeWorker[] = [];
  let gateway: TestGateway | undefined;
  const start = async (...states: Parameters<typeof FakeWorker.start>) => {
    const worker = await FakeWorker.start(...states);
    workers.push(worker);
    return worker;
  };

  afterEach(async () => {
    await gateway?.stop();
    gateway = undefined;
    await Promise.all(workers.splice(0).map((worker) => worker.stop()));
  });

  it("tells the caller when nobody takes over from a dead worker in time, and serves again when it is back", async () => {
    const worker = await start();
    gateway = await startGateway([worker.address], { ATELIER_RETRY_WAIT_MS: "200" });
    await gateway.until(allReady);
    worker.next({ kind: "die" });
    const refused = await refusal(await post(gateway, { prompt: "x" }));
    expect(refused).toMatchObject({ status: 502, code: "WORKER_LOST" });
    expect(refused.message).toMatch(/worker w1 was lost before the image was finished/);

    await gateway.until((views) => !views[0]?.ready);
    const missing = await refusal(await post(gateway, { prompt: "x" }));
    expect(missing).toMatchObject({ status: 503, code: "NO_WORKER", retryAfterS: 5 });
    expect((await readiness(gateway)).status).toBe(503);

    await worker.revive();
    await gateway.until(allReady);
    expect((await post(gateway, { prompt: "x" })).status).toBe(200);
  });

  it("keeps an answer whose connection broke after the receipt", async () => {
    const worker = await start();
    gateway = await startGateway([worker.address]);
    await gateway.until(allReady);
    worker.next({ kind: "die-after-receipt" });
    expect((await post(gateway, { prompt: "x" })).status).toBe(200);
  });

  it("serves the requests of a dead worker and those of others all the same", async () => {
    const [a, b] = [await start({ workerId: "a" }), await start({ workerId: "b" })];
    gateway = await startGateway([a.address, b.address]);
    await gateway.until(allReady);
    a.usually = { kind: "die" };
    b.usually = { kind: "answer", after: a.nextRequest() };
    const responses = await Promise.all([post(gateway, { prompt: "1" }), post(gateway, { prompt: "2" })]);
    expect(responses.map((response) => response.status)).toEqual([200, 200]);
  });

  it("finds a worker that starts after the gateway", async () => {
    const worker = await start();
    await worker.kill();
    gateway = await startGateway([worker.address]);
    const refused = await refusal(await readiness(gateway));
    expect(refused).toMatchObject({ status: 503, code: "NO_WORKER" });
    expect(refused.message).toContain(`no worker is ready (${worker.address}: `);
    expect((await fetch(`${gateway.url}/healthz`)).status).toBe(200);
    await worker.revive();
    await gateway.until(allReady);
    expect(await (await readiness(gateway)).json()).toEqual({ ready: true, workers: 1, workers_ready: 1 });
  });

  it("sends nothing to a worker that warms up or drains", async () => {
    const [a, b] = [await start({ workerId: "a" }), await start({ workerId: "b", ready: false })];
    gateway = await startGateway([a.address, b.address]);
    await gateway.until((views) => views[0]?.ready === true && views[1]?.id === "b");
    for (let i = 0; i < 6; i++) expect((await post(gateway, { prompt: "x" })).status).toBe(200);
    expect([a.requests.length, b.requests.length]).toEqual([6, 0]);

    a.publish({ draining: true });
    await gateway.until((views) => views[0]?.draining === true);
    const refused = await refusal(await post(gateway, { prompt: "x" }));
    expect(refused.code).toBe("NO_WORKER");
    expect(refused.message).toMatch(/a: draining; b: warming up/);
  });

  it("spreads what is in flight", async () => {
    const both = [await start({ workerId: "a" }), await start({ workerId: "b" })];
    gateway = await startGateway(both.map((worker) => worker.address));
    await gateway.until(allReady);
    const gate = Promise.withResolvers<void>();
    for (const worker of both) worker.usually = { kind: "answer", after: gate.promise };
    const here = gateway;
    const asked = Array.from({ length: 6 }, () => post(here, { prompt: "x" }));
    await eventually(() => here.inFlight.count === 6);
    expect(here.fleet.views().map((worker) => worker.inFlight)).toEqual([3, 3]);
    gate.resolve();
    expect((await Promise.all(asked)).map((response) => response.status)).toEqual([200, 200, 200, 200, 200, 200]);
    expect(both.map((worker) => worker.requests.length)).toEqual([3, 3]);
  });

  it("sends a request to a worker that holds its model", async () => {
    const [a, b] = [await start({ workerId: "a" }), await start({ workerId: "b", models: [fakeModel("brand")] })];
    gateway = await startGateway([a.address, b.address]);
    await gateway.until(allReady);
    expect((await post(gateway, { prompt: "x", model: "brand" })).status).toBe(200);
    expect((await post(gateway, { prompt: "x" })).status).toBe(200);
    expect([a.requests.length, b.requests.length]).toEqual([1, 1]);
    b.publish({ ready: false });
    await gateway.until((views) => !views[1]?.ready);
    expect(await refusal(await post(gateway, { prompt: "x", model: "brand" }))).toMatchObject({
      status: 503,
      code: "NO_WORKER",
    });
  });

  it("does not use a worker whose report it cannot read", async () => {
    const worker = await start({ models: [{ id: "broken" }] });
    gateway = await startGateway([worker.address]);
    await gateway.until((views) => views[0]?.notReadyReason?.includes("without limits") === true);
    expect((await readiness(gateway)).status).toBe(503);
  });
});

describe("what operators ask", () => {
  const { ask, gateway } = gatewayWithOneWorker();

  it("lists the models with limits, defaults and the workers ready for them", async () => {
    const response = await fetch(`${gateway().url}/v1/models`);
    expect(await response.json()).toEqual({
      object: "list",
      data: [{ id: "atelier-tiny", object: "model", created: 0, owned_by: "atelier", root: "atelier-tiny" }],
      models: [
        {
          id: "atelier-tiny",
          name: "The model atelier-tiny",
          family: "sd-tiny",
          license: "Apache-2.0",
          digest: "sha256:00",
          native_width: 256,
          native_height: 256,
          limits: {
            size_min: 64,
            size_max: 1024,
            size_multiple: 8,
            pixels_max: 786_432,
            steps_max: 150,
            num_images_max: 4,
          },
          defaults: { width: 512, height: 512, steps: 25, guidance_scale: 2.5, sampler: "dpmpp_2m" },
          status: "resident",
          progress: 1,
          weights_bytes: 0,
          workers_ready: 1,
        },
      ],
    });
  });

  it("counts pictures, workers and what is in flight", async () => {
    await ask({ prompt: "x", num_images: 2 });
    const text = await metrics(gateway());
    expect(text).toMatch(
      /atelier_gateway_images_total\{model="atelier-tiny",format="png",simulated="true",service="gateway"\} 2\n/,
    );
    expect(text).toMatch(/atelier_gateway_workers\{ready="true",service="gateway"\} 1\n/);
    expect(text).toMatch(/atelier_gateway_generations_in_flight\{service="gateway"\} 0\n/);
  });
});

describe("stopping", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeEach(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address]);
    await gateway.until(allReady);
  });

  afterEach(async () => {
    gateway.fleet.close();
    await worker.stop();
  });

  it("finishes what is in flight, refuses what comes on open connections, and listens no more", async () => {
    const gate = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: gate.promise });
    const asked = post(gateway, { prompt: "x" });
    const idle = connect(Number(new URL(gateway.url).port), "127.0.0.1");
    await new Promise((resolve) => idle.once("connect", resolve));
    await eventually(() => worker.requests.length === 1);
    const stopped = gateway.stop({ timeoutMs: 5_000 });
    const late = await answerOn(idle, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n");
    expect(late).toMatch(/^HTTP\/1.1 503 [\s\S]*retry-after: 1[\s\S]*"code":"DRAINING"/);
    await expect(fetch(`${gateway.url}/healthz`)).rejects.toThrow();
    gate.resolve();
    const answered = await asked;
    expect([answered.status, answered.headers.get("connection")]).toEqual([200, "close"]);
    await stopped;
  });

  it("does not wait longer than it was given, and tells the caller so", async () => {
    worker.next({ kind: "hang" });
    const asked = post(gateway, { prompt: "x" });
    await eventually(() => worker.requests.length === 1);
    await Promise.all([
      gateway.stop({ timeoutMs: 50 }),
      expect(asked.then(refusal)).resolves.toMatchObject({ status: 503, code: "DRAINING" }),
    ]);
    await eventually(() => worker.cancelled.length === 1);
  });
});

describe("a bug", () => {
  it("is answered without our insides, and then reported for the process to stop on", async () => {
    const gateway = await startGateway([]);
    gateway.fleet.views = () => invariant(false, "the secret holds") as never;
    const refused = await refusal(await fetch(`${gateway.url}/v1/models`));
    expect(refused).toMatchObject({ status: 500, code: "INTERNAL" });
    expect(refused.message).not.toContain("secret");
    await eventually(() => gateway.bugs.length === 1);
    await gateway.stop();
  });
});

/** One gateway and one ready worker, shared by the tests of a describe block. */
function gatewayWithOneWorker(env: Readonly<Record<string, string>> = {}) {
  let worker: FakeWorker | undefined;
  let gateway: TestGateway | undefined;
  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], env);
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway?.stop();
    await worker?.stop();
  });
  return {
    worker: () => worker!,
    gateway: () => gateway!,
    ask: (body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal) =>
      post(gateway!, body, headers, signal),
  };
}

/** Sends `body` as it stands when it is text or bytes, as JSON otherwise. */
function post(
  gateway: TestGateway,
  body: unknown,
  headers: Record<string, string> = {},
  signal?: AbortSignal,
): Promise<Response> {
  return fetch(`${gateway.url}/generate`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" || Buffer.isBuffer(body) ? (body as string) : JSON.stringify(body),
    ...(signal && { signal }),
  });
}

function readiness(gateway: TestGateway): Promise<Response> {
  return fetch(`${gateway.url}/readyz`);
}

async function metrics(gateway: TestGateway): Promise<string> {
  return (await fetch(`${gateway.url}/metrics`)).text();
}

/** The parts of a failed response, after checking that its body has the one form and names the request. */
async function refusal(response: Response) {
  const { error } = errorBody.strict().parse(await response.json());
  expect(error.request_id).toBe(response.headers.get("x-atelier-request-id"));
  return { ...error, status: response.status, retryAfterS: Number(response.headers.get("retry-after") ?? Number.NaN) };
}

/** Sends `bytes` on a connection of their own and returns all that comes back. */
function rawHttp(url: string, bytes: string): Promise<string> {
  return answerOn(connect(Number(new URL(url).port), "127.0.0.1"), bytes);
}

function answerOn(socket: ReturnType<typeof connect>, bytes: string): Promise<string> {
  return new Promise((resolve) => {
    let answer = "";
    socket.setEncoding("utf8").on("data", (text) => {
      answer += text;
    });
    // A server that refuses early closes while we still write; what it said before counts.
    socket.on("error", () => {});
    socket.on("close", () => resolve(answer));
    socket.write(bytes);
  });
}

/** Waits until `condition` holds; the test's own time limit is the bound. */
async function eventually(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 10));
}
