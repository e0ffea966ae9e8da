import { once } from "node:events";
import { cp, mkdtemp, rm, truncate } from "node:fs/promises";
import { connect } from "node:http2";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sha256 } from "@atelier/core";
import { DenoiseStateSchema, GenerateRequestSchema, ImageFormat, Stage, WorkerService } from "@atelier/proto";
import { create, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type SpawnedWorker, spawnWorker } from "./testing/spawn-worker.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";
import { SMALL, WorkerClient } from "./testing/worker-client.ts";

/** So long that only a cancellation ends it within a test. */
const LONG = { steps: 150, width: 256, height: 256 };

describe("a worker process", () => {
  let worker: SpawnedWorker;
  let client: WorkerClient;
  let metrics: string;

  beforeAll(async () => {
    worker = spawnWorker({ ATELIER_MODELS: TEST_BUNDLE, ATELIER_QUEUE_MAX: "2", ATELIER_WORKER_ID: "w1" });
    const { address, metricsAddress } = await worker.said("listening");
    client = new WorkerClient(address);
    metrics = `http://${metricsAddress}`;
  });
  afterAll(async () => {
    client.close();
    worker.process.kill("SIGTERM");
    await worker.exited;
  });

  it("says NOT_SERVING and admits nothing before it is warm, SERVING after", async () => {
    expect(await client.health()).toBe("NOT_SERVING");
    expect((await fetch(`${metrics}/healthz`)).status).toBe(503);
    await expect(client.generate().ended).rejects.toMatchObject({ code: "NO_WORKER", retryable: true });
    expect(await client.state()).toMatchObject({ ready: false, models: [] });

    await worker.said("ready");
    expect(await client.health()).toBe("SERVING");
    expect((await fetch(`${metrics}/healthz`)).status).toBe(200);
  });

  it("publishes what it holds and what it learned at warm-up", async () => {
    const { models, ...state } = await client.state();
    expect(state).toMatchObject({ workerId: "w1", ready: true, device: "cpu", requestsInFlight: 0, requestsFree: 2 });
    expect(models).toHaveLength(1);
    expect(models[0]).toMatchObject({ id: "atelier-tiny", defaults: { nativeWidth: 256 }, limits: { stepsMax: 150 } });
    expect(models[0]!.stepMs).toBeGreaterThan(0);
  });

  it("makes the images of a request, and tells how it gets on", async () => {
    const generation = client.generate({ steps: 3, numImages: 2, seed: 7n });
    await generation.ended;

    const cases = generation.events.map((event) => event.case);
    expect(cases[0]).toBe("accepted");
    expect(cases.at(-1)).toBe("completed");
    const [accepted] = generation.all("accepted");
    expect(accepted?.stepsTotal).toBe(6);
    expect(accepted?.backlogMs).toBeGreaterThan(0);
    expect(accepted?.sequence).toBeGreaterThan(0n);
    const steps = generation.all("progress").map(({ stepsDone }) => stepsDone);
    expect(steps).toEqual(steps.toSorted((a, b) => a - b));
    expect(steps.at(-1)).toBe(6);

    const images = generation.all("image").toSorted((a, b) => a.imageIndex - b.imageIndex);
    expect(images.map(({ seed, mediaType }) => [seed, mediaType])).toEqual([
      [7n, "image/png"],
      [8n, "image/png"],
    ]);
    expect(await sharp(images[0]!.data).metadata()).toMatchObject({ format: "png", width: 128, height: 128 });

    const { receipt } = generation.all("completed")[0]!;
    expect(receipt).toMatchObject({ workerId: "w1", device: "cpu", simulated: false, promptChunks: 1 });
    expect(receipt!.parameters).toMatchObject({ prompt: "a red mug", seed: 7n, steps: 3 });
    expect(receipt!.hiresFix).toBeUndefined();
    expect(receipt!.modelDigest).toMatch(/^sha256:/);
  });

  it("says in the receipt whether it had embedded both prompts before", async () => {
    const ask = async () => {
      const generation = client.generate({ prompt: "a kettle nobody asked for", negativePrompt: "nor this" });
      await generation.ended;
      return generation.all("completed")[0]!.receipt!.embeddingsCached;
    };
    expect([await ask(), await ask()]).toEqual([false, true]);
  });

  it("makes one and the same picture of a seed: alone, beside another, and as a later image of a request", async () => {
    const alone = await imageOf(client.generate({ seed: 8n }));
    const other = client.generate({ seed: 3n, steps: 12, prompt: "国潮风T恤，白色背景" });
    await other.first("progress", ({ stage }) => stage === Stage.DENOISE);
    const beside = await imageOf(client.generate({ seed: 8n }));
    await other.ended;
    const second = await imageOf(client.generate({ seed: 7n, numImages: 2 }), 1);

    expect(Buffer.compare(beside, alone)).toBe(0);
    expect(Buffer.compare(second, alone)).toBe(0);
    expect(Buffer.compare(await imageOf(client.generate({ seed: 9n })), alone)).not.toBe(0);
  });

  it("makes an image above the native size in two phases, and the receipt says so", async () => {
    const generation = client.generate({ width: 512, height: 384, steps: 10, guidanceScale: 1 });
    const image = await imageOf(generation);
    expect(await sharp(image).metadata()).toMatchObject({ width: 512, height: 384 });
    const { receipt } = generation.all("completed")[0]!;
    const { stepsTotal } = generation.all("accepted")[0]!;
    expect(receipt!.hiresFix).toMatchObject({ nativeWidth: 296, nativeHeight: 224, upscale: "bicubic" });
    expect(stepsTotal).toBe(10 + Math.trunc(10 * receipt!.hiresFix!.strength));
    expect(generation.all("progress").at(-1)?.stepsDone).toBe(stepsTotal);
  });

  it.each([
    ["jpeg", ImageFormat.JPEG],
    ["webp", ImageFormat.WEBP],
  ])("writes %s", async (format, wire) => {
    const image = await imageOf(client.generate({}, { format: wire, quality: 60 }));
    expect(await sharp(image).metadata()).toMatchObject({ format, width: 128 });
  });

  it("sends a preview with every n-th progress event of an image", async () => {
    const generation = client.generate({ steps: 5 }, { previewEverySteps: 2 });
    await generation.ended;
    const steps = generation.all("progress").filter(({ stage }) => stage === Stage.DENOISE);
    expect(steps.map(({ preview }) => preview.length > 0)).toEqual([false, true, false, true, false]);
    expect(await sharp(steps[1]!.preview).metadata()).toMatchObject({ format: "png", width: 16, height: 16 });
  });

  it("makes images from an image, and says from which", async () => {
    const initImage = await sharp({ create: { width: 300, height: 200, channels: 3, background: "teal" } })
      .jpeg()
      .toBuffer();
    const generation = client.generate({ steps: 5, strength: 0.4, numImages: 2 }, { initImage });
    await generation.ended;
    expect(generation.all("accepted")[0]!.stepsTotal).toBe(4);
    const { receipt } = generation.all("completed")[0]!;
    expect(receipt!.parameters).toMatchObject({ strength: 0.4, initImageDigest: sha256(initImage) });
    const [first, second] = generation.all("image").map(({ data }) => Buffer.from(data));
    expect(first!.equals(second!)).toBe(false);

    // The digest of the receipt makes the same request again; another digest is refused.
    const { initImageDigest } = receipt!.parameters!;
    const again = client.generate({ steps: 5, strength: 0.4, initImageDigest }, { initImage });
    expect(Buffer.compare(await imageOf(again), first!)).toBe(0);
    const other = client.generate({ steps: 5, strength: 0.4, initImageDigest: `${initImageDigest}0` }, { initImage });
    await expect(other.ended).rejects.toMatchObject({ code: "INVALID_REQUEST", field: "init_image_digest" });
  });

  it("takes a prompt of several chunks, and says how many they were", async () => {
    const generation = client.generate({ prompt: "a red mug, ".repeat(60), negativePrompt: "blurred", steps: 2 });
    await generation.ended;
    expect(generation.all("completed")[0]!.receipt!.promptChunks).toBeGreaterThan(1);
  });

  it("refuses bad requests, naming the field, and serves the others meanwhile", async () => {
    const good = client.generate({ steps: 6 });
    const refused = [
      client.generate({ width: 7 }),
      client.generate({ steps: 1_000_000 }),
      client.generate({ prompt: "(mug:99)" }),
      client.generate({ sampler: 0 }),
      client.generate({}, { resumeFrom: [create(DenoiseStateSchema)] }),
      client.generate({ model: "unheard-of" }),
    ];
    const fields = await Promise.all(
      refused.map((call) =>
        call.ended.then(
          () => "none",
          (error) => error.field,
        ),
      ),
    );
    expect(fields).toEqual(["width", "steps", "prompt", "sampler", "resume_from", "model"]);
    await good.ended;
  });

  it("refuses what is beyond its queue, and admits again when a place is free", async () => {
    const running = [client.generate(LONG), client.generate(LONG)];
    await Promise.all(running.map((call) => call.first("accepted")));
    await expect(client.generate().ended).rejects.toMatchObject({ code: "OVERLOADED", retryable: true });
    expect(await client.state()).toMatchObject({ requestsInFlight: 2, requestsFree: 0 });

    running[0]!.cancel();
    await client.state(({ requestsFree }) => requestsFree === 1);
    const admitted = client.generate();
    await admitted.first("accepted");
    running[1]!.cancel();
    await admitted.ended;
    await idle();
  });

  it("stops denoising at the next step when a request is cancelled", async () => {
    const before = await stepsRun();
    const call = client.generate(LONG);
    await call.first("progress", ({ stage }) => stage === Stage.DENOISE);
    call.cancel();
    await expect(call.ended).rejects.toMatchObject({ code: "CANCELLED" });
    await idle();
    const after = await stepsRun();
    expect(after - before).toBeGreaterThan(0);
    expect(after - before).toBeLessThan(LONG.steps);
    await client.generate().ended;
    expect((await stepsRun()) - after).toBe(SMALL.steps);
  });

  it("takes the client's disappearance for a cancellation", async () => {
    const { address } = await worker.said("listening");
    const connection = connect(`http://${address}`);
    const call = connection.request({
      ":method": "POST",
      ":path": `/${WorkerService.typeName}/Generate`,
      "content-type": "application/grpc",
      te: "trailers",
    });
    const request = create(GenerateRequestSchema, {
      requestId: "gone",
      format: ImageFormat.PNG,
      parameters: { ...SMALL, ...LONG },
    });
    const message = toBinary(GenerateRequestSchema, request);
    const length = Buffer.alloc(5);
    length.writeUInt32BE(message.length, 1);
    call.end(Buffer.concat([length, message]));
    await client.state(({ requestsInFlight }) => requestsInFlight === 1);
    call.on("error", () => {});
    connection.destroy();
    await idle();
  });

  it("drops work whose deadline has passed", async () => {
    const call = client.generate(LONG, {}, { deadline: Date.now() + 400 });
    await expect(call.ended).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
    await idle();
  });

  it("tells a client that does not read for a while the newest progress, and every image", async () => {
    const generation = client.generate({ steps: 20, numImages: 2 });
    await generation.first("accepted");
    generation.pause();
    await idle();
    generation.resume();
    await generation.ended;
    expect(generation.all("image")).toHaveLength(2);
    expect(generation.all("completed")).toHaveLength(1);
  });

  it("serves reflection of its whole contract", async () => {
    const { address } = await worker.said("listening");
    const raw = new Client(address, credentials.createInsecure());
    const path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const same = (bytes: Buffer) => bytes;
    const ask = (request: Buffer) =>
      new Promise<string>((resolve, reject) => {
        const call = raw.makeBidiStreamRequest(path, same, same, {});
        call.on("data", (reply: Buffer) => resolve(reply.toString("latin1")));
        call.on("error", reject);
        call.write(request);
        call.end();
      });
    const listServices = Buffer.from([0x3a, 1, 0x2a]); // ServerReflectionRequest.list_services = "*"
    const symbol = Buffer.from(WorkerService.typeName);
    const fileOfSymbol = Buffer.concat([Buffer.from([0x22, symbol.length]), symbol]); // .file_containing_symbol
    expect(await ask(listServices)).toContain("atelier.v1.WorkerService");
    const files = await ask(fileOfSymbol);
    expect(files).toContain("atelier/v1/worker.proto");
    expect(files).toContain("atelier/v1/denoise_state.proto");
    raw.close();
  });

  it("counts requests by outcome, and rows by step batch", async () => {
    const text = await (await fetch(`${metrics}/metrics`)).text();
    expect(text).toMatch(/atelier_worker_requests_total\{outcome="ok",service="worker"\} \d+/);
    expect(text).toMatch(/atelier_worker_requests_total\{outcome="OVERLOADED",service="worker"\} 1/);
    expect(text).toMatch(/atelier_worker_stage_seconds_count\{stage="image_decode",service="worker"\} \d+/);
    expect(text).toMatch(/atelier_worker_step_batch_rows_bucket/);
    expect(text).toMatch(/atelier_worker_embeddings_total\{outcome="hit",service="worker"\} [1-9]/);
    expect(text).toMatch(/atelier_worker_embeddings_total\{outcome="miss",service="worker"\} [1-9]/);
    expect((await fetch(`${metrics}/nothing`)).status).toBe(404);
  });

  it("measures the memory that its models take, against the budget", async () => {
    const text = await (await fetch(`${metrics}/metrics`)).text();
    const gauge = (name: string) => Number(new RegExp(`^${name}\\{.*\\} ([0-9.e+]+)$`, "m").exec(text)?.[1]);
    const counted = gauge("atelier_worker_memory_counted_bytes");
    const { places } = await client.state();
    expect(counted).toBeGreaterThanOrEqual(Number(places[0]!.weightsBytes));
    expect(gauge("atelier_worker_memory_budget_bytes")).toBeGreaterThan(counted);
    expect(text).toMatch(/atelier_worker_model_resident\{model="atelier-tiny",service="worker"\} 1/);
  });

  async function idle(): Promise<void> {
    await client.state(({ requestsInFlight }) => requestsInFlight === 0);
  }

  /** U-Net runs so far. */
  async function stepsRun(): Promise<number> {
    const text = await (await fetch(`${metrics}/metrics`)).text();
    return Number(/atelier_worker_step_seconds_count\{.*\} (\d+)/.exec(text)?.[1]);
  }
});

describe("a worker that is asked to stop", () => {
  it("finishes what runs, refuses what is new, and exits with 0 on SIGTERM", async () => {
    const { worker, client } = await readyWorker();
    const running = client.generate({ steps: 40 });
    await running.first("progress", ({ stage }) => stage === Stage.DENOISE);
    const draining = client.state((state) => state.draining);
    worker.process.kill("SIGTERM");
    expect(await draining).toMatchObject({ ready: false, requestsFree: 0 });
    expect(await client.health()).toBe("NOT_SERVING");
    await expect(client.generate().ended).rejects.toMatchObject({ code: "DRAINING", retryable: true });
    await running.ended;
    expect(running.all("image")).toHaveLength(1);
    expect((await worker.exited).code).toBe(0);
    client.close();
  });

  it("gives back what does not fit in the time, so that another worker can do it, and still exits with 0", async () => {
    const { worker, client } = await readyWorker({ ATELIER_DRAIN_MS: "0" });
    const running = client.generate(LONG);
    await running.first("progress", ({ stage }) => stage === Stage.DENOISE);
    worker.process.kill("SIGINT");
    await expect(running.ended).rejects.toMatchObject({ code: "DRAINING", retryable: true });
    expect((await worker.exited).code).toBe(0);
    client.close();
  });

  it("drains when its parent is gone", async () => {
    const { worker, client } = await readyWorker();
    worker.process.disconnect();
    expect((await worker.exited).code).toBe(0);
    client.close();
  });

  it("drains on request and answers when nothing is in flight", async () => {
    const { worker, client } = await readyWorker();
    const running = client.generate({ steps: 10 });
    await running.first("accepted");
    expect(await client.drain(30_000)).toMatchObject({ finished: 1, imagesHandedBack: 0 });
    await running.ended;
    worker.process.kill("SIGTERM");
    expect((await worker.exited).code).toBe(0);
    client.close();
  });

  async function readyWorker(env: Record<string, string> = {}) {
    const worker = spawnWorker({ ATELIER_MODELS: TEST_BUNDLE, ...env });
    const { address } = await worker.said("listening");
    await worker.said("ready");
    return { worker, client: new WorkerClient(address) };
  }
});

describe("a worker that cannot start", () => {
  it("names every bad variable and exits with 1", async () => {
    const worker = spawnWorker({ ATELIER_DEVICE: "gpu", ATELIER_QUEUE_MAX: "none" });
    const { message } = await worker.said("failed");
    expect((await worker.exited).code).toBe(1);
    expect(message).toMatch(/ATELIER_MODELS[\s\S]*ATELIER_DEVICE=gpu[\s\S]*ATELIER_QUEUE_MAX=none/);
  });

  it.each(["ATELIER_WORKER_LISTEN", "ATELIER_WORKER_METRICS_LISTEN"])(
    "names the address of %s that another process has, and exits with 1",
    async (variable) => {
      const other = createServer();
      other.listen(0, "127.0.0.1");
      await once(other, "listening");
      const taken = `127.0.0.1:${(other.address() as AddressInfo).port}`;
      const worker = spawnWorker({ ATELIER_MODELS: TEST_BUNDLE, [variable]: taken });
      const { message } = await worker.said("failed");
      expect((await worker.exited).code).toBe(1);
      expect(message).toMatch(new RegExp(`cannot listen on ${variable}=${taken}: .*EADDRINUSE`));
      other.close();
    },
  );

  it("names the provider that is missing and what to install to its parent alone, and exits with 1", async () => {
    const worker = spawnWorker({ ATELIER_MODELS: TEST_BUNDLE, ATELIER_DEVICE: "tensorrt" });
    const { message } = await worker.said("failed");
    expect(message).toMatch(
      /DEVICE_UNAVAILABLE.*"tensorrt" is not available here.*install.*TensorRT.*ATELIER_DEVICE_FALLBACK=cpu/,
    );
    const { code, stderr } = await worker.exited;
    expect(code).toBe(1);
    expect(stderr).not.toContain(message);
  });

  it("uses the CPU in its place only where the configuration allows it, and says so", async () => {
    const worker = spawnWorker({
      ATELIER_MODELS: TEST_BUNDLE,
      ATELIER_DEVICE: "tensorrt",
      ATELIER_DEVICE_FALLBACK: "cpu",
    });
    const { address } = await worker.said("listening");
    await worker.said("ready");
    const client = new WorkerClient(address);
    expect(await client.state()).toMatchObject({ device: "cpu" });
    client.close();
    worker.process.kill("SIGTERM");
    const { code, stderr } = await worker.exited;
    expect(code).toBe(0);
    expect(stderr).toContain("running on the CPU, as ATELIER_DEVICE_FALLBACK allows");
  });

  it("names every bad bundle, its file and the reason, in one message", async () => {
    const folder = await mkdtemp(join(tmpdir(), "atelier-worker-"));
    try {
      const truncated = join(folder, "truncated");
      await cp(TEST_BUNDLE, truncated, { recursive: true });
      await truncate(join(truncated, "unet/model.onnx"), 1000);
      const worker = spawnWorker({ ATELIER_MODELS: `${truncated},${join(folder, "absent")}` });
      const { message } = await worker.said("failed");
      expect(message).toContain("INVALID_BUNDLE");
      expect(message).toMatch(/unet\/model\.onnx: .*truncated/);
      expect(message).toContain(join(folder, "absent"));
      expect((await worker.exited).code).toBe(1);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

async function imageOf(generation: ReturnType<WorkerClient["generate"]>, imageIndex = 0): Promise<Uint8Array> {
  await generation.ended;
  return generation.all("image").find((image) => image.imageIndex === imageIndex)!.data;
}
