import { setTimeout as sleep } from "node:timers/promises";
import { ServingError } from "@atelier/core";
import { errorFromStatus } from "@atelier/rpc";
import { Client, type ClientReadableStream, credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { FakeWorker, PICTURE } from "../testing/fake-worker.ts";
import { bearer, keysJson, testKey } from "../testing/keys.ts";
import { reflectedClient } from "../testing/reflected-client.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

const SERVICE = "atelier.v1.Generation";

describe("atelier.v1.Generation, to a client made from what the server says of itself", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;
  let client: Client & Record<string, CallableFunction>;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], { ATELIER_GRPC_LISTEN: "127.0.0.1:0" });
    await gateway.until(allReady);
    client = await reflectedClient(gateway.grpcAddress!, SERVICE);
  });
  afterAll(async () => {
    client.close();
    await gateway.stop();
    await worker.stop();
  });

  it("makes pictures, and tells how it goes, with the defaults of POST /v1/generations", async () => {
    const events = await create({
      prompt: "国潮风T恤, 白色背景",
      seed: 7,
      num_images: 2,
      steps: 5,
      width: 256,
      format: "IMAGE_FORMAT_WEBP",
    });
    expect(events.map(({ event }) => event)).toEqual(["accepted", "progress", "image", "image", "completed"]);
    const { id } = events[0]!.accepted!;
    expect(events[0]!.accepted).toEqual({ id, seed: 7, model: "atelier-tiny", steps_total: 10 });
    expect(id).toMatch(/^gen_/);
    expect(events.slice(2, 4).map(({ image }) => image)).toEqual(
      [0, 1].map((image_index) => ({
        image_index,
        data: Buffer.from(PICTURE),
        media_type: "image/webp",
        width: 256,
        height: 512,
        seed: 7 + image_index,
      })),
    );
    expect(events.at(-1)!.completed).toMatchObject({
      id,
      cache: "CACHE_OUTCOME_BYPASS",
      worker_ids: ["w1"],
      receipt: {
        parameters: {
          prompt: "国潮风T恤, 白色背景",
          negative_prompt: "低分辨率, 模糊",
          sampler: "SAMPLER_DPMPP_2M",
          seed: 7,
        },
        model_digest: "sha256:00",
        worker_id: "w1",
        simulated: true,
        times: { queue_ms: 1, text_encode_ms: 2, denoise_ms: 3, image_decode_ms: 4 },
      },
    });
  });

  it("says the call's name before all else: the caller's, where that is plain", async () => {
    const nameOf = async (given: string) => {
      const metadata = new Metadata();
      metadata.set("x-request-id", given);
      const call = client["Create"]!({ prompt: "x" }, metadata);
      const said = new Promise<Metadata>((resolve) => call.once("metadata", resolve));
      await eventsOf(call);
      return (await said).get("x-request-id")[0];
    };
    expect(await nameOf("order-17")).toBe("order-17");
    expect(await nameOf("a b")).toMatch(/^req_[\w-]{16}$/);
  });

  it("passes everything on that the caller chose", async () => {
    const init = Buffer.from("89504e470d0a1a0a00", "hex");
    await create({
      prompt: "x",
      negative_prompt: "",
      model: "atelier-tiny",
      guidance_scale: 0,
      sampler: "SAMPLER_EULER_A",
      priority: "PRIORITY_CLASS_BULK",
      init_image: init,
      strength: 0.25,
      preview_every: 2,
    });
    const sent = worker.requests.at(-1)!;
    expect(Buffer.from(sent.initImage).equals(init)).toBe(true);
    expect(sent).toMatchObject({
      previewEverySteps: 2,
      order: { priorityClass: 3 },
      parameters: { negativePrompt: "", guidanceScale: 0, sampler: 4, strength: 0.25 },
    });
  });

  it.each([
    [{ prompt: "" }, "prompt", "prompt"],
    [{ prompt: "x", steps: 151 }, "steps", "steps is 151; it must be a whole number from 1 to 150"],
    [{ prompt: "x", width: 513 }, "width", "multiple of 8"],
    [{ prompt: "x", sampler: 99 }, "sampler", "sampler is 99; it must be one of"],
    [{ prompt: "x", cache: 99 }, "cache", "cache is 99; it must be one of"],
    [{ prompt: "x", loras: [{ name: "brand", weight: 9 }] }, "loras[0].weight", "a number from -2 to 2"],
    [{ prompt: "x", background: true, preview_every: 1 }, "preview_every", "stream of events"],
    [{ prompt: "x", seed: "18446744073709551615" }, "seed", "seed"],
  ])("refuses %j by name", async (request, field, message) => {
    const failure = await create(request).catch((error: ServiceError) => error);
    expect(failure).toMatchObject({ code: status.INVALID_ARGUMENT });
    const detail = errorFromStatus(failure as ServiceError, "the gateway");
    expect(detail).toMatchObject({ code: "INVALID_REQUEST", field });
    expect(detail.detail).toContain(message);
  });

  it("says when to come back", async () => {
    worker.publish({ ready: false });
    await gateway.until((views) => !views.some(({ ready }) => ready));
    onTestFinished(async () => {
      worker.publish({ ready: true });
      await gateway.until(allReady);
    });
    const failure = (await create({ prompt: "x" }).catch((error) => error)) as ServiceError;
    expect(failure.code).toBe(status.UNAVAILABLE);
    expect(errorFromStatus(failure, "the gateway")).toMatchObject({ code: "NO_WORKER", retryAfterMs: 5_000 });
  });

  it("gives a worker's failure its own code", async () => {
    worker.next({ kind: "fail", error: new ServingError("NUMERIC_FAILURE", "NaN in the latents") });
    const failure = (await create({ prompt: "x" }).catch((error) => error)) as ServiceError;
    expect(errorFromStatus(failure, "the gateway").code).toBe("NUMERIC_FAILURE");
  });

  it("carries the call's deadline to the worker, and ends with it", async () => {
    worker.next({ kind: "hang" });
    const deadline = Date.now() + 400;
    const failure = (await create({ prompt: "x" }, { deadline }).catch((error) => error)) as ServiceError;
    expect(failure.code).toBe(status.DEADLINE_EXCEEDED);
    expect(Math.abs(worker.deadlines.get(worker.requests.at(-1)!.requestId)! - deadline)).toBeLessThan(200);
    await eventually(() => gateway.inFlight.count === 0);
  });

  it("takes the request back when the call is cancelled", async () => {
    worker.next({ kind: "hang" });
    const came = worker.nextRequest();
    const call = client["Create"]!({ prompt: "x" }) as ClientReadableStream<unknown>;
    call.on("error", () => {});
    call.resume();
    await came;
    const { requestId } = worker.requests.at(-1)!;
    call.cancel();
    await eventually(() => worker.cancelled.includes(requestId));
    await eventually(() => gateway.inFlight.count === 0);
  });

  it("goes on in the background when asked to, for any connection to read, over HTTP too", async () => {
    const released = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: released.promise });
    const [started, ...rest] = await create({ prompt: "x", seed: 7, background: true });
    expect(rest).toEqual([]);
    const { id, status: first } = started!.started!;
    expect(first).toBe("GENERATION_STATUS_RUNNING");
    released.resolve();
    const { state, images } = await unary("Get", { id, wait_ms: 5_000, with_images: true });
    expect(state).toMatchObject({
      id,
      status: "GENERATION_STATUS_SUCCEEDED",
      seed: 7,
      completed: { receipt: { worker_id: "w1" } },
    });
    expect(images).toMatchObject([{ data: Buffer.from(PICTURE), seed: 7 }]);
    const overHttp = await (await fetch(`${gateway.url}/v1/generations/${id}`)).json();
    expect(overHttp).toMatchObject({ id, status: "succeeded", seed: 7 });
  });

  it("cancels what goes on in the background", async () => {
    worker.next({ kind: "hang" });
    const [started] = await create({ prompt: "x", background: true });
    const { id } = started!.started!;
    expect((await unary("Cancel", { id })).state).toMatchObject({ status: "GENERATION_STATUS_CANCELLED" });
    expect((await unary("Get", { id })).state).toMatchObject({ status: "GENERATION_STATUS_CANCELLED" });
  });

  it("knows of no other generation", async () => {
    for (const method of ["Get", "Cancel"]) {
      const failure = (await unary(method, { id: "gen_nobody-made-it" }).catch((error) => error)) as ServiceError;
      expect(failure.code).toBe(status.NOT_FOUND);
    }
  });

  it("lists the models with their limits", async () => {
    const { models } = await unary("ListModels", {});
    expect(models).toMatchObject([
      {
        model: { id: "atelier-tiny", limits: { steps_max: 150 } },
        place: { status: "MODEL_STATUS_RESIDENT" },
        workers_ready: 1,
      },
    ]);
  });

  it("counts calls as requests", async () => {
    const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
    for (const code of [200, 400, 404]) {
      expect(metrics).toMatch(
        new RegExp(`requests_total\\{route="atelier.v1.Generation/\\w+",method="gRPC",status="${code}"`),
      );
    }
  });

  const create = (request: object, options: object = {}) =>
    eventsOf(client["Create"]!(request, new Metadata(), options));
  const unary = (method: string, request: object) => answerOf(client, method, request);
});

describe("the gRPC API of a gateway with keys", () => {
  it("asks for one, and keeps tenants apart", async () => {
    const [shop, other] = [testKey({ tenant: "shop" }), testKey({ tenant: "other" })];
    const worker = await FakeWorker.start();
    const gateway = await startGateway([worker.address], {
      ATELIER_GRPC_LISTEN: "127.0.0.1:0",
      ATELIER_KEYS: keysJson([shop, other], [{ id: "shop" }, { id: "other" }]),
    });
    await gateway.until(allReady);
    const client = await reflectedClient(gateway.grpcAddress!, SERVICE);
    onTestFinished(async () => {
      client.close();
      await gateway.stop();
      await worker.stop();
    });
    const as = (headers: Record<string, string>) => {
      const metadata = new Metadata();
      for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
      return metadata;
    };
    const start = (metadata: Metadata) => eventsOf(client["Create"]!({ prompt: "x", background: true }, metadata));
    for (const headers of [{}, { authorization: "Bearer atk_nobody_0000" }, { authorization: "Basic !" }]) {
      await expect(start(as(headers))).rejects.toMatchObject({ code: status.UNAUTHENTICATED });
    }
    const [started] = await start(as(bearer(shop)));
    const { id } = started!.started!;
    await expect(answerOf(client, "Get", { id }, as(bearer(shop)))).resolves.toBeDefined();
    await expect(answerOf(client, "Get", { id }, as({ "x-api-key": shop.text }))).resolves.toBeDefined();
    for (const method of ["Get", "Cancel"]) {
      await expect(answerOf(client, method, { id }, as(bearer(other)))).rejects.toMatchObject({
        code: status.NOT_FOUND,
      });
    }
  });
});

describe("a gateway that stops", () => {
  it("does not wait for those who only watch its health", async () => {
    const gateway = await startGateway([], { ATELIER_GRPC_LISTEN: "127.0.0.1:0" });
    const watch = new Client(gateway.grpcAddress!, credentials.createInsecure());
    const watching = watch.makeServerStreamRequest(
      "/grpc.health.v1.Health/Watch",
      () => Buffer.alloc(0),
      (bytes) => bytes,
      {},
    );
    watching.on("error", () => {});
    await new Promise((resolve) => watching.once("data", resolve));
    await gateway.stop({ timeoutMs: 10 * 60_000 });
    watch.close();
  });

  it("finishes its calls, takes no new ones, and says so to those who ask for its health", async () => {
    const worker = await FakeWorker.start();
    const gateway = await startGateway([worker.address], { ATELIER_GRPC_LISTEN: "127.0.0.1:0" });
    await gateway.until(allReady);
    const client = await reflectedClient(gateway.grpcAddress!, SERVICE);
    const health: number[] = [];
    const watch = new Client(gateway.grpcAddress!, credentials.createInsecure());
    // What a balancer keeps open for as long as the gateway lives. HealthCheckResponse: field 1, 1 serving, 2 not.
    const watching = watch.makeServerStreamRequest(
      "/grpc.health.v1.Health/Watch",
      () => Buffer.alloc(0),
      (bytes) => bytes[1]!,
      {},
    );
    watching.on("data", (state) => health.push(state)).on("error", () => {});
    const released = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: released.promise }, { kind: "hang" });
    const finishes = eventsOf(client["Create"]!({ prompt: "x" }));
    const takesTooLong = eventsOf(client["Create"]!({ prompt: "y" })).catch((error: ServiceError) => error);
    await eventually(() => worker.requests.length === 2);
    const stopped = gateway.stop({ timeoutMs: 300 });
    released.resolve();
    expect((await finishes).at(-1)!.event).toBe("completed");
    expect(errorFromStatus((await takesTooLong) as ServiceError, "the gateway").code).toBe("DRAINING");
    await stopped;
    expect(health).toEqual([1, 2]);
    watch.close();
    client.close();
    await worker.stop();
  });
});

interface Event {
  readonly event: string;
  readonly accepted?: { readonly id: string };
  readonly image?: object;
  readonly completed?: object;
  readonly started?: { readonly id: string; readonly status: string };
}

function eventsOf(call: ClientReadableStream<Event>): Promise<Event[]> {
  return new Promise((resolve, reject) => {
    const events: Event[] = [];
    call.on("data", (event) => events.push(event));
    call.on("error", reject);
    call.on("end", () => resolve(events));
  });
}

function answerOf(
  client: Client & Record<string, CallableFunction>,
  method: string,
  request: object,
  metadata = new Metadata(),
) {
  return new Promise<{ state: { id: string; status: string }; images: object[]; models: object[] }>(
    (resolve, reject) => {
      client[method]!(request, metadata, (error: ServiceError | null, answer: never) =>
        error === null ? resolve(answer) : reject(error),
      );
    },
  );
}

async function eventually(condition: () => boolean): Promise<void> {
  while (!condition()) await sleep(10);
}
