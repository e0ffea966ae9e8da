import { Agent, request } from "node:http";
import { ServingError } from "@atelier/core";
import { FakeWorker, PICTURE } from "@atelier/gateway/testing";
import { keysJson, testKey } from "@atelier/gateway/testing/keys";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { ImageFormat, Stage } from "@atelier/proto";
import OpenAI, { toFile } from "openai";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";

const picture = Buffer.from(PICTURE).toString("base64");
/** A file that looks like one; the worker would decode it. */
const PNG = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), Buffer.alloc(100, 7)]);

/** What this project has on top of OpenAI's types; their clients pass it on in either direction. */
type Own = Record<string, unknown>;
const own = (answer: object) => answer as Own;

describe("OpenAI's JavaScript client", () => {
  let worker: FakeWorker;
  let gateway: TestGateway;
  let client: OpenAI;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], { ATELIER_MODEL_ALIASES: "gpt-image-1,dall-e-3=atelier-tiny" });
    await gateway.until(allReady);
    client = new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey: "none is asked for", maxRetries: 0 });
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  const last = () => worker.requests.at(-1)!;

  describe("images.generate", () => {
    it("makes a picture of the size that was asked for, under the name of a model of OpenAI's", async () => {
      const answer = await client.images.generate({
        model: "gpt-image-1",
        prompt: "a red mug",
        size: "512x256" as "auto",
      });
      expect(answer.data).toEqual([{ b64_json: picture }]);
      expect(answer).toMatchObject({ background: "opaque", output_format: "png", quality: "auto", size: "512x256" });
      expect(Math.abs(answer.created - Date.now() / 1_000)).toBeLessThan(60);
      expect(own(answer)["receipts"]).toMatchObject([{ model: "atelier-tiny", prompt: "a red mug", simulated: true }]);
      expect(last().parameters).toMatchObject({ model: "atelier-tiny", width: 512, height: 256, negativePrompt: "" });
      expect(last().format).toBe(ImageFormat.PNG);
    });

    it("leaves what is not said, or said to be null, to the model", async () => {
      await client.images.generate({ prompt: "x", size: "auto", n: null, output_format: null, model: null });
      expect(last().parameters).toMatchObject({ width: 512, height: 512, steps: 25, guidanceScale: 2.5, numImages: 1 });
    });

    it("takes format and compression", async () => {
      const answer = await client.images.generate({ prompt: "x", output_format: "webp", output_compression: 40 });
      expect(answer.output_format).toBe("webp");
      expect(last()).toMatchObject({ format: ImageFormat.WEBP, quality: 40 });
      await client.images.generate({ prompt: "x", output_format: "jpeg", output_compression: 0 });
      expect(last()).toMatchObject({ format: ImageFormat.JPEG, quality: 1 });
      await client.images.generate({ prompt: "x", output_compression: 100 }); // all that png has
      expect(last()).toMatchObject({ format: ImageFormat.PNG, quality: 0 });
    });

    it("takes our own fields", async () => {
      const ours = { negative_prompt: "blurry", seed: 7, steps: 4, guidance_scale: 3.5, sampler: "euler" };
      const { data, response } = await client.images
        .generate({ prompt: "x", ...ours } as OpenAI.ImageGenerateParamsNonStreaming)
        .withResponse();
      expect(last().parameters).toMatchObject({ negativePrompt: "blurry", seed: 7n, steps: 4, guidanceScale: 3.5 });
      expect(own(data)["receipts"]).toMatchObject([{ sampler: "euler", seed: 7 }]);
      expect(response.headers.get("x-atelier-seed")).toBe("7");
      expect(response.headers.get("x-atelier-simulated")).toBe("true");
      expect(response.headers.get("x-request-id")).toBe(response.headers.get("x-atelier-request-id"));
    });

    it("makes more pictures than the model does at once, each another", async () => {
      const before = worker.requests.length;
      const answer = await client.images.generate({
        prompt: "x",
        n: 10,
        seed: 100,
      } as OpenAI.ImageGenerateParamsNonStreaming);
      expect(answer.data).toHaveLength(10);
      const made = worker.requests.slice(before).map(({ parameters }) => [parameters!.seed, parameters!.numImages]);
      expect(made).toEqual([
        [100n, 4],
        [104n, 4],
        [108n, 2],
      ]);
      expect(own(answer)["receipts"]).toHaveLength(3);
      await client.images.generate({ prompt: "x", n: 5 });
      const [first, second] = worker.requests.slice(-2).map(({ parameters }) => parameters!.seed);
      expect(second).toBe(first! + 4n);
    });

    it("says which fields changed nothing", async () => {
      const { data, response } = await client.images
        .generate({ prompt: "x", quality: "hd", style: "vivid", moderation: "low", user: "u1", partial_images: 2 })
        .withResponse();
      const ignored = ["quality", "style", "moderation", "user", "partial_images"];
      expect(response.headers.get("x-atelier-ignored")).toBe(ignored.join(", "));
      expect(own(data)["ignored"]).toEqual(ignored);
    });

    it("counts no tokens, and says so with zeros", async () => {
      const { usage } = await client.images.generate({ prompt: "x" });
      expect(usage).toMatchObject({ input_tokens: 0, output_tokens: 0, total_tokens: 0 });
    });

    it("is answered once under an idempotency key", async () => {
      const before = worker.requests.length;
      const ask = () =>
        client.images.generate({ prompt: "x" }, { headers: { "idempotency-key": "order-1" } }).withResponse();
      const [first, second] = [await ask(), await ask()];
      expect(second.data).toEqual(first.data);
      expect(second.response.headers.get("idempotency-replayed")).toBe("true");
      expect(worker.requests).toHaveLength(before + 1);
    });
  });

  describe("images.generate with stream", () => {
    it("gives partial images spread over the steps, then the picture", async () => {
      const preview = Uint8Array.of(1, 2, 3);
      // Every second of eight steps, as asked for below; the worker is free to give the last one too.
      const progress = [2, 4, 6, 8].map((stepsDone) => ({ stage: Stage.DENOISE, stepsDone, preview }));
      worker.next({ kind: "answer", progress });
      const ours = { steps: 8, seed: 5 };
      const { data: stream, response } = await client.images
        .generate({ prompt: "x", stream: true, partial_images: 3, quality: "high", size: "256x256", ...ours })
        .withResponse();
      expect(response.headers.get("x-atelier-seed")).toBe("5");
      const events = await collect(stream);
      const look = { size: "256x256", quality: "auto", background: "opaque", output_format: "png" };
      const partial = {
        type: "image_generation.partial_image",
        b64_json: Buffer.from(preview).toString("base64"),
        ...look,
      };
      expect(events.slice(0, 3)).toMatchObject([0, 1, 2].map((index) => ({ ...partial, partial_image_index: index })));
      expect(events.slice(3)).toMatchObject([
        {
          type: "image_generation.completed",
          b64_json: picture,
          ...look,
          usage: { total_tokens: 0 },
          ignored: ["quality"],
        },
      ]);
      expect(last().previewEverySteps).toBe(2);
    });

    it("gives no partial image where none was asked for", async () => {
      const events = await collect(await client.images.generate({ prompt: "x", stream: true }));
      expect(events.map(({ type }) => type)).toEqual(["image_generation.completed"]);
      expect(last().previewEverySteps).toBe(0);
    });

    it("gives each picture with its number where there are several, beyond what the model makes at once", async () => {
      const events = (await collect(
        await client.images.generate({ prompt: "x", stream: true, n: 6 }),
      )) as unknown as Own[];
      expect(events.map(({ type }) => type)).toEqual(Array(6).fill("image_generation.completed"));
      expect(events.map((event) => event["image_index"])).toEqual([0, 1, 2, 3, 4, 5]);
      expect(events.map((event) => "receipt" in event)).toEqual([false, false, false, true, false, true]);
    });

    it("refuses as without a stream what fails before a worker has it", async () => {
      const asked = client.images.generate({ prompt: "x", stream: true, model: "sdxl" });
      await expect(asked).rejects.toMatchObject({ status: 404, code: "model_not_found", param: "model" });
    });

    it("ends with an error where it fails on its way", async () => {
      worker.next({ kind: "leave-out", what: "receipt" });
      const stream = await client.images.generate({ prompt: "x", stream: true });
      const failure: unknown = await collect(stream).catch((error: unknown) => error);
      expect(failure).toBeInstanceOf(OpenAI.APIError);
      expect(failure).toMatchObject({ type: "server_error", code: "internal" });
    });

    it("is taken back when its reader leaves", async () => {
      worker.next({ kind: "hang" });
      const stream = await client.images.generate({ prompt: "x", stream: true });
      const { requestId } = last();
      stream.controller.abort();
      await expect.poll(() => worker.cancelled).toContain(requestId);
    });
  });

  describe("images.edit", () => {
    const file = (name = "mug.png") => toFile(PNG, name, { type: "image/png" });

    it("starts from the picture, with every field of the form as what it stands for", async () => {
      const ours = { seed: 3, steps: 10, guidance_scale: 3.5, sampler: "ddim" };
      const answer = await client.images.edit({
        image: await file(),
        prompt: "a blue mug",
        n: 2,
        size: "256x256",
        output_format: "jpeg",
        output_compression: 60,
        user: "u1",
        ...ours,
      } as OpenAI.ImageEditParamsNonStreaming);
      expect(answer.data).toHaveLength(2);
      expect(own(answer)["ignored"]).toEqual(["user"]);
      expect(Buffer.from(last().initImage).equals(PNG)).toBe(true);
      expect(last()).toMatchObject({ format: ImageFormat.JPEG, quality: 60 });
      const { parameters } = last();
      expect(parameters).toMatchObject({ prompt: "a blue mug", numImages: 2, width: 256, seed: 3n, steps: 10 });
      expect(parameters!.strength).toBeCloseTo(0.6);
      expect(parameters!.guidanceScale).toBeCloseTo(3.5);
    });

    it("keeps more of the picture with a high fidelity, and as much as strength says", async () => {
      await client.images.edit({ image: await file(), prompt: "x", input_fidelity: "high" });
      expect(last().parameters!.strength).toBeCloseTo(0.4);
      const ours = { strength: 0.25 };
      await client.images.edit({ image: [await file()], prompt: "x", input_fidelity: "high", ...ours });
      expect(last().parameters!.strength).toBeCloseTo(0.25);
    });

    it("streams under its own names", async () => {
      const preview = Uint8Array.of(9);
      // Of 25 steps 15 are run: a preview each 7, of which the first is in the middle.
      worker.next({ kind: "answer", progress: [{ stage: Stage.DENOISE, stepsDone: 13, preview }] });
      const stream = await client.images.edit({ image: await file(), prompt: "x", stream: true, partial_images: 1 });
      const events = await collect(stream);
      expect(events.map(({ type }) => type)).toEqual(["image_edit.partial_image", "image_edit.completed"]);
      expect(last().previewEverySteps).toBe(7);
    });

    it("takes the same form once under an idempotency key, and another picture not at all", async () => {
      const before = worker.requests.length;
      const ask = async (bytes: Buffer) =>
        client.images.edit(
          { image: await toFile(bytes, "a.png", { type: "image/png" }), prompt: "x" },
          { headers: { "idempotency-key": "edit-1" } },
        );
      expect(await ask(PNG)).toEqual(await ask(PNG));
      expect(worker.requests).toHaveLength(before + 1);
      await expect(ask(Buffer.concat([PNG, PNG]))).rejects.toBeInstanceOf(OpenAI.UnprocessableEntityError);
    });

    it.each([
      ["a mask", { mask: true }, "mask", "mask is not served here"],
      ["several pictures", { images: 2 }, "image", "image is there twice"],
      ["no picture", { images: 0 }, "image", "image is missing"],
      ["what is no picture", { bytes: Buffer.from("GIF89a") }, "image", "is no PNG, JPEG or WebP file"],
      ["a number that is none", { n: "two" }, "n", 'n is "two"; it must be a whole number from 1 to 10'],
      ["a field of nobody's", { blur: "3" }, "blur", 'unknown field "blur"'],
      ["a text of megabytes", { prompt: "x".repeat(70_000) }, "prompt", "prompt is longer than 65536 bytes"],
    ])("is refused %s, by name", async (_what, { mask, images = 1, bytes = PNG, ...fields }: Own, param, message) => {
      const form = new FormData();
      for (const [name, value] of Object.entries({ prompt: "x", ...fields })) form.set(name, String(value));
      const blob = new Blob([new Uint8Array(bytes as Buffer)], { type: "image/png" });
      for (let i = 0; i < (images as number); i++) form.append(images === 1 ? "image" : "image[]", blob, "a.png");
      if (mask === true) form.set("mask", blob, "mask.png");
      const response = await fetch(`${gateway.url}/v1/images/edits`, { method: "POST", body: form });
      expect(response.status).toBe(400);
      const { error } = (await response.json()) as { error: { message: string } };
      expect(error).toMatchObject({ type: "invalid_request_error", param });
      expect(error.message).toContain(message);
    });

    it("is refused as anything but a form, and as half of one", async () => {
      const send = async (type: string, body: string) => {
        const headers = { "content-type": type };
        const response = await fetch(`${gateway.url}/v1/images/edits`, { method: "POST", headers, body });
        return { status: response.status, ...((await response.json()) as { error: Own }).error };
      };
      const type = "invalid_request_error";
      expect(await send("application/json", "{}")).toMatchObject({ status: 415, type });
      expect(await send("multipart/form-data", "x")).toMatchObject({ status: 400, type });
      const cut = '--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\nPNG';
      expect(await send("multipart/form-data; boundary=b", cut)).toMatchObject({ status: 400, type });
      const proto = '--b\r\ncontent-disposition: form-data; name="__proto__"\r\n\r\n1\r\n--b--\r\n';
      expect(await send("multipart/form-data; boundary=b", proto)).toMatchObject({ status: 400, type });
    });

    it("leaves the connection fit for the next request when it is refused before its end", async () => {
      const agent = new Agent({ keepAlive: true, maxSockets: 1 });
      onTestFinished(() => agent.destroy());
      const form = new FormData();
      form.set("mask", new Blob(["x"]), "mask.png");
      form.set("image", new Blob([new Uint8Array(900_000)]), "a.png");
      const whole = new Response(form);
      const type = whole.headers.get("content-type")!;
      const body = Buffer.from(await whole.arrayBuffer());
      for (let i = 0; i < 3; i++) {
        const status = await new Promise((resolve, reject) => {
          const headers = { "content-type": type, "content-length": body.length };
          const asked = request(`${gateway.url}/v1/images/edits`, { method: "POST", agent, headers, timeout: 5_000 });
          asked.on("response", (response) => response.resume().on("end", () => resolve(response.statusCode)));
          asked.on("error", reject).on("timeout", () => asked.destroy(new Error("no answer")));
          asked.end(body);
        });
        expect(status).toBe(400);
      }
    });

    it("is refused above the body's limit, whether or not it says its length", async () => {
      const image = await toFile(Buffer.concat([PNG, Buffer.alloc(1024 * 1024)]), "a.png", { type: "image/png" });
      const refused = { status: 413, type: "invalid_request_error", code: "payload_too_large" };
      await expect(client.images.edit({ image, prompt: "x" })).rejects.toMatchObject(refused);
      const form = new FormData();
      form.set("prompt", "x");
      form.set("image", new Blob([new Uint8Array(1024 * 1024 + 10)]), "a.png");
      const whole = new Response(form);
      const response = await fetch(`${gateway.url}/v1/images/edits`, {
        method: "POST",
        headers: { "content-type": whole.headers.get("content-type")! },
        body: whole.body,
        duplex: "half",
      } as RequestInit);
      expect(response.status).toBe(413);
    });
  });

  describe("models", () => {
    it("lists what is served, under its own name and others", async () => {
      const models = await collect(await client.models.list());
      expect(models).toEqual(
        ["atelier-tiny", "gpt-image-1", "dall-e-3"].map((id) => {
          return { id, object: "model", created: 0, owned_by: "atelier", root: "atelier-tiny" };
        }),
      );
    });

    it("retrieves one, or says that there is none", async () => {
      expect(await client.models.retrieve("dall-e-3")).toMatchObject({ id: "dall-e-3", root: "atelier-tiny" });
      const missing: unknown = await client.models.retrieve("gpt-5").catch((error: unknown) => error);
      expect(missing).toBeInstanceOf(OpenAI.NotFoundError);
      expect(missing).toMatchObject({ code: "model_not_found", param: "model" });
    });

    it("has the same names in every dialect", async () => {
      const response = await fetch(`${gateway.url}/generate`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ prompt: "x", model: "dall-e-3" }),
      });
      expect(await response.json()).toMatchObject({ model: "atelier-tiny" });
    });
  });

  describe("a failure", () => {
    const failing = async (body: Own) => {
      const asked = client.images.generate({ prompt: "x", ...body } as OpenAI.ImageGenerateParamsNonStreaming);
      const error: unknown = await asked.catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(OpenAI.APIError);
      return error as InstanceType<typeof OpenAI.APIError>;
    };

    it.each([
      [{ guidance: 3 }, "guidance", "unknown_parameter", 'unknown field "guidance"'],
      [{ strength: 0.5 }, "strength", "unknown_parameter", "unknown field"],
      [{ prompt: undefined }, "prompt", "missing_required_parameter", "prompt is missing"],
      [{ prompt: " " }, "prompt", "invalid_value", "say what the picture shows"],
      [{ n: 11 }, "n", "invalid_value", "n is 11; it must be a whole number from 1 to 10"],
      [{ size: "big" }, "size", "invalid_value", 'size is "big"; it must be "auto"'],
      [{ size: "1000x100000" }, "size", "invalid_value", 'size is "1000x100000"'],
      [{ size: "512x500" }, "size", "invalid_value", "height is 500"],
      [{ size: "500x500" }, "size", "invalid_value", "a multiple of 8 from 64 to 1024"],
      [{ response_format: "url" }, "response_format", "invalid_value", "one of b64_json"],
      [{ background: "transparent" }, "background", "invalid_value", "one of auto, opaque"],
      [{ output_format: "gif" }, "output_format", "invalid_value", "one of png, jpeg, webp"],
      [{ output_compression: 50 }, "output_compression", "invalid_value", "png loses nothing"],
      [{ partial_images: 4, stream: true }, "partial_images", "invalid_value", "from 0 to 3"],
      [{ n: 10, seed: Number.MAX_SAFE_INTEGER - 8 }, "seed", "invalid_value", "with 10 images the last seed"],
      [{ loras: [{ name: "nobody-has-it" }] }, "loras", "invalid_value", "nobody-has-it"],
    ])("of %j is a BadRequestError that names the field", async (body, param, code, message) => {
      const error = await failing(body);
      expect(error).toBeInstanceOf(OpenAI.BadRequestError);
      expect(error).toMatchObject({ status: 400, type: "invalid_request_error", param, code });
      expect(error.message).toContain(message);
    });

    it("of an unknown model is a NotFoundError", async () => {
      const error = await failing({ model: "sdxl" });
      expect(error).toBeInstanceOf(OpenAI.NotFoundError);
      expect(error).toMatchObject({ code: "model_not_found", param: "model", type: "invalid_request_error" });
      expect(error.requestID).toMatch(/^\S+$/);
    });

    it("of a body that is none, or too large, has the schema too", async () => {
      const send = async (body: string, type = "application/json") => {
        const headers = { "content-type": type };
        const response = await fetch(`${gateway.url}/v1/images/generations`, { method: "POST", headers, body });
        return { status: response.status, body: await response.json() };
      };
      const error = { type: "invalid_request_error", param: null, message: expect.any(String) };
      expect(await send("{")).toMatchObject({ status: 400, body: { error: { ...error, code: "invalid_request" } } });
      expect(await send("[]")).toMatchObject({ status: 400, body: { error } });
      expect(await send("x".repeat(2 ** 21))).toMatchObject({ status: 413, body: { error } });
      expect(await send("prompt=x", "application/x-www-form-urlencoded")).toMatchObject({
        status: 415,
        body: { error },
      });
    });

    it("of a query that asks for what is not done here is a refusal too", async () => {
      const url = `${gateway.url}/v1/images/generations?dry_run=true`;
      const headers = { "content-type": "application/json" };
      const response = await fetch(url, { method: "POST", headers, body: JSON.stringify({ prompt: "x" }) });
      expect(response.status).toBe(400);
      expect(await response.json()).toMatchObject({ error: { param: "dry_run", code: "unknown_parameter" } });
    });

    it("of the device's numbers is an InternalServerError", async () => {
      worker.next({ kind: "fail", error: new ServingError("NUMERIC_FAILURE", "not a number in step 3") });
      const error = await failing({});
      expect(error).toBeInstanceOf(OpenAI.InternalServerError);
      expect(error).toMatchObject({ status: 500, type: "server_error", code: "numeric_failure", param: null });
    });
  });
});

describe("OpenAI's JavaScript client and API keys", () => {
  it("sends its key as bearer, and reads each refusal as what it is", async () => {
    const worker = await FakeWorker.start();
    const reader = testKey({ tenant: "shop", scopes: ["models"] });
    const slow = testKey({ tenant: "slow" });
    const narrow = testKey({ tenant: "narrow" });
    const keys = keysJson(
      [reader, slow, narrow],
      [{ id: "shop" }, { id: "slow", requests_per_minute: 1 }, { id: "narrow", models: ["atelier-tiny"] }],
    );
    const gateway = await startGateway([worker.address], {
      ATELIER_KEYS: keys,
      ATELIER_MODEL_ALIASES: "gpt-image-1=atelier-tiny,dall-e-3=sdxl",
    });
    onTestFinished(async () => {
      await gateway.stop();
      await worker.stop();
    });
    await gateway.until(allReady);
    const clientOf = (apiKey: string) => new OpenAI({ baseURL: `${gateway.url}/v1`, apiKey, maxRetries: 0 });
    const refusal = (apiKey: string, model = "gpt-image-1"): Promise<unknown> =>
      clientOf(apiKey)
        .images.generate({ prompt: "x", model })
        .catch((error: unknown) => error);

    const unknown = await refusal("sk-nobody");
    expect(unknown).toBeInstanceOf(OpenAI.AuthenticationError);
    expect(unknown).toMatchObject({ type: "authentication_error", code: "invalid_api_key" });

    const unlisted: unknown = await collect(clientOf("sk-nobody").models.list()).catch((error: unknown) => error);
    expect(unlisted).toBeInstanceOf(OpenAI.AuthenticationError);
    expect(unlisted).toMatchObject({ type: "authentication_error", param: null, code: "UNAUTHENTICATED" });

    const forbidden = await refusal(reader.text);
    expect(forbidden).toBeInstanceOf(OpenAI.PermissionDeniedError);
    expect(forbidden).toMatchObject({ type: "permission_error", code: "forbidden" });

    expect(await refusal(narrow.text)).toMatchObject({ data: [{ b64_json: picture }] }); // by its other name
    expect(await refusal(narrow.text, "dall-e-3")).toBeInstanceOf(OpenAI.PermissionDeniedError);
    const listed = await collect(await clientOf(narrow.text).models.list());
    expect(listed.map(({ id }) => id)).toEqual(["atelier-tiny", "gpt-image-1"]);

    expect(await refusal(slow.text)).toHaveProperty("data");
    const limited = await refusal(slow.text);
    expect(limited).toBeInstanceOf(OpenAI.RateLimitError);
    expect(limited).toMatchObject({ type: "rate_limit_error", code: "rate_limit_exceeded" });
    expect(Number((limited as InstanceType<typeof OpenAI.APIError>).headers!.get("retry-after"))).toBeGreaterThan(0);
  });
});

async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const all: Item[] = [];
  for await (const item of items) all.push(item);
  return all;
}
