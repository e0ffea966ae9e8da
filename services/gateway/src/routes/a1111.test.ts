import { ServingError } from "@atelier/core";
import { Sampler, Stage } from "@atelier/proto";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { a1111Error } from "../dialects/a1111-errors.ts";
import { FakeWorker, PICTURE } from "../testing/fake-worker.ts";
import { keysJson, type TestKey, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

/** A file of 512 x 512 pixels by its head, in base64: nothing in the gateway looks further. */
const PNG = pngHead(512, 512);
const shop = testKey({ tenant: "shop" });
const press = testKey({ tenant: "press" });

let worker: FakeWorker;
let gateway: TestGateway;

beforeAll(async () => {
  worker = await FakeWorker.start();
  gateway = await startGateway([worker.address], { ATELIER_KEYS: keysJson([shop, press]) });
  await gateway.until(allReady);
});
afterAll(async () => {
  await gateway.stop();
  await worker.stop();
});

describe("POST /sdapi/v1/txt2img", () => {
  it("makes what is asked for, and answers as the web UI does", async () => {
    const { status, reply, info } = await txt2img({
      prompt: "a red mug",
      negative_prompt: "blurry",
      seed: 7,
      steps: 12,
      cfg_scale: 5.5,
      width: 256,
      height: 320,
      sampler_name: "DPM++ 2M",
      scheduler: "Karras",
    });
    expect(status).toBe(200);
    expect(worker.requests.at(-1)?.parameters).toMatchObject({
      prompt: "a red mug",
      negativePrompt: "blurry",
      seed: 7n,
      steps: 12,
      guidanceScale: 5.5,
      width: 256,
      height: 320,
      sampler: Sampler.DPMPP_2M,
      karrasSigmas: true,
      numImages: 1,
    });
    expect(reply.images).toEqual([Buffer.from(PICTURE).toString("base64")]);
    expect(reply.parameters).toMatchObject({ prompt: "a red mug", steps: 12 });
    expect(info).toMatchObject({
      prompt: "a red mug",
      all_prompts: ["a red mug"],
      negative_prompt: "blurry",
      seed: 7,
      all_seeds: [7],
      sampler_name: "DPM++ 2M",
      steps: 12,
      cfg_scale: 5.5,
      width: 256,
      height: 320,
      sd_model_name: "atelier-tiny",
      sd_model_hash: "00",
      job_timestamp: expect.stringMatching(/^20\d{12}$/),
      atelier: { ignored: [], interrupted: false, receipts: [{ seed: 7, simulated: true, worker_id: "w1" }] },
    });
    expect(info.infotexts).toEqual([
      "a red mug\nNegative prompt: blurry\nSteps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.5, " +
        "Seed: 7, Size: 256x320, Model hash: 00, Model: atelier-tiny, Version: atelier",
    ]);
  });

  it("has the web UI's defaults, not the model's, and draws a seed for -1", async () => {
    const { headers, info } = await txt2img({ prompt: "x", seed: -1, sampler_name: null, steps: null });
    expect(worker.requests.at(-1)?.parameters).toMatchObject({
      negativePrompt: "",
      width: 512,
      height: 512,
      steps: 50,
      guidanceScale: 7,
      sampler: Sampler.EULER,
      karrasSigmas: false,
    });
    expect(info.seed).toBeGreaterThanOrEqual(0);
    expect(headers.get("x-atelier-seed")).toBe(String(info.seed));
    expect(headers.get("x-atelier-simulated")).toBe("true");
  });

  it("splits more pictures than a model makes at once, their seeds following each other", async () => {
    const before = worker.requests.length;
    const { reply, info } = await txt2img({ prompt: "x", seed: 10, batch_size: 3, n_iter: 2 });
    expect(worker.requests.slice(before).map(({ parameters }) => parameters?.numImages)).toEqual([4, 2]);
    expect(reply.images).toHaveLength(6);
    expect(info.all_seeds).toEqual([10, 11, 12, 13, 14, 15]);
    expect(info.infotexts).toHaveLength(6);
    expect(info.atelier.receipts).toHaveLength(2);
  });

  it("sends no pictures where none are wanted", async () => {
    const { reply, info } = await txt2img({ prompt: "x", seed: 3, send_images: false });
    expect(reply.images).toEqual([]);
    expect(info.all_seeds).toEqual([3]);
  });

  it("takes the model from override_settings, under each of the names that sd-models gives it", async () => {
    const [model] = (await get("sd-models").then(({ json }) => json)) as { title: string; model_name: string }[];
    for (const sd_model_checkpoint of [model!.title, model!.model_name, "atelier-tiny.safetensors"]) {
      const override_settings = { sd_model_checkpoint, CLIP_stop_at_last_layers: 1 };
      expect((await txt2img({ prompt: "x", override_settings })).status).toBe(200);
      expect(worker.requests.at(-1)?.parameters?.model).toBe("atelier-tiny");
    }
    const unknown = await txt2img({ prompt: "x", override_settings: { sd_model_checkpoint: "sd_xl_base" } });
    expect(unknown).toMatchObject({ status: 404, error: { code: "MODEL_NOT_FOUND", error: "HTTPException" } });
    expect(unknown.error.field).toBe("override_settings.sd_model_checkpoint");
  });

  it("reads what changes nothing, and says so", async () => {
    const body = {
      prompt: "x",
      save_images: true,
      hr_scale: 2,
      denoising_strength: 0.7,
      eta: 1,
      do_not_save_grid: false,
    };
    const { status, headers, info } = await txt2img({ ...body, alwayson_scripts: { ControlNet: { args: [] } } });
    expect(status).toBe(200);
    expect(headers.get("x-atelier-ignored")).toBe("save_images, denoising_strength, hr_scale, eta");
    expect(info.atelier.ignored).toEqual(["save_images", "denoising_strength", "hr_scale", "eta"]);
  });

  it("makes nothing where a dry run is asked for, of which there is none", async () => {
    const before = worker.requests.length;
    expect(await ask("POST", "txt2img?dry_run=true", { prompt: "x" })).toMatchObject({
      status: 422,
      json: { field: "dry_run" },
    });
    expect(worker.requests).toHaveLength(before);
  });

  it("answers a call once under one idempotency key", async () => {
    const key = { "idempotency-key": "a1111-1" };
    const first = await txt2img({ prompt: "once" }, shop, key);
    const again = await txt2img({ prompt: "once" }, shop, key);
    expect(again.headers.get("idempotency-replayed")).toBe("true");
    expect(again.reply).toEqual(first.reply);
  });

  it.each([
    [{ promt: "x" }, "promt", /unknown field "promt"/],
    [{ prompt: "" }, "prompt", /empty/],
    [{ prompt: 3 }, "prompt", /prompt is 3; it must be a text/],
    [{ prompt: "x", subseed_strength: 0.3 }, "subseed_strength", /is 0.3, which is not served here.* send 0/],
    [{ prompt: "x", enable_hr: true }, "enable_hr", /is true, which is not served/],
    [{ prompt: "x", restore_faces: true }, "restore_faces", /not served/],
    [{ prompt: "x", tiling: true }, "tiling", /not served/],
    [{ prompt: "x", styles: ["anime"] }, "styles", /a list, which is not served/],
    [{ prompt: "x", s_churn: 1 }, "s_churn", /not served/],
    [{ prompt: "x", s_noise: 1.1 }, "s_noise", /send 1/],
    [{ prompt: "x", script_name: "x/y plot" }, "script_name", /not served/],
    [{ prompt: "x", refiner_checkpoint: "xl" }, "refiner_checkpoint", /not served/],
    [{ prompt: "x", alwayson_scripts: { ADetailer: { args: [true] } } }, "alwayson_scripts", /"ADetailer"/],
    [
      { prompt: "x", override_settings: { CLIP_stop_at_last_layers: 2 } },
      "override_settings.CLIP_stop_at_last_layers",
      /is 2/,
    ],
    [{ prompt: "x", override_settings: { img2img_fix_steps: true } }, "override_settings", /"img2img_fix_steps"/],
    [{ prompt: "x", sampler_name: "Heun" }, "sampler_name", /"Heun"; it must be one of DPM\+\+ 2M, .*LCM/],
    [{ prompt: "x", sampler_index: "PLMS" }, "sampler_index", /"PLMS"/],
    [{ prompt: "x", scheduler: "Exponential" }, "scheduler", /one of Automatic, Karras/],
    [{ prompt: "x", sampler_name: "Euler a", scheduler: "Karras" }, "scheduler", /Euler a does not have/],
    [{ prompt: "x", sampler_name: "DDIM", eta: 1 }, "eta", /DDIM is served with 0/],
    [{ prompt: "x", batch_size: 8, n_iter: 3 }, "n_iter", /24 pictures; a call makes at most 16/],
    [{ prompt: "x", batch_size: 0 }, "batch_size", /from 1 to 16/],
    [{ prompt: "x", width: 500 }, "width", /a multiple of 8/],
    [{ prompt: "x", steps: 151 }, "steps", /from 1 to 150/],
    [{ prompt: "x", seed: -2 }, "seed", /from -1/],
    [{ prompt: "x <lora:brand:0.8>" }, "prompt", /loras names "brand"; no adapter is served here/],
    [{ prompt: "x <lora:brand:9>" }, "prompt", /a number from -2 to 2/],
    [{ prompt: "x <hypernet:brand:1>" }, "prompt", /only <lora:name:weight>/],
    [{ prompt: "x", init_images: [PNG] }, "init_images", /unknown field/],
  ])("refuses %j by name, as FastAPI does", async (body, field, message) => {
    const { status, error } = await txt2img(body);
    expect(status).toBe(422);
    expect(a1111Error.strict().parse(error)).toEqual(error);
    expect(error).toMatchObject({ code: "INVALID_REQUEST", error: "RequestValidationError", field });
    expect(error.errors).toMatch(message);
    expect(error.detail).toEqual([{ loc: ["body", ...field.split(".")], msg: error.errors, type: expect.any(String) }]);
  });
});

describe("POST /sdapi/v1/img2img", () => {
  it("starts from the picture, as base64 or as a data: URL", async () => {
    for (const picture of [PNG, `data:image/png;base64,${PNG}`]) {
      const { status, reply, info } = await img2img({ prompt: "x", init_images: [picture], denoising_strength: 0.4 });
      expect(status).toBe(200);
      const { initImage, parameters } = worker.requests.at(-1)!;
      expect(Buffer.from(initImage).toString("base64")).toBe(PNG);
      expect(parameters?.strength).toBeCloseTo(0.4, 6);
      expect(reply.parameters["init_images"]).toBeNull();
      expect(info.denoising_strength).toBe(0.4);
    }
    const { reply } = await img2img({ prompt: "x", init_images: [PNG], include_init_images: true });
    expect(reply.parameters["init_images"]).toEqual([PNG]);
    expect(worker.requests.at(-1)?.parameters?.strength).toBeCloseTo(0.75, 6);
  });

  it("cuts a picture of another shape where that is asked for", async () => {
    const { status } = await img2img({ prompt: "x", init_images: [pngHead(600, 400)], resize_mode: 1 });
    expect(status).toBe(200);
  });

  it("reads the fields of a mask where there is none", async () => {
    const inpainting = { mask_blur: 4, inpaint_full_res: true, inpainting_fill: 0, initial_noise_multiplier: 1 };
    const { status, headers } = await img2img({ prompt: "x", init_images: [PNG], mask: null, ...inpainting });
    expect(status).toBe(200);
    expect(headers.get("x-atelier-ignored")).toContain("mask_blur");
  });

  it.each([
    [{ prompt: "x" }, "init_images", /init_images is missing/],
    [{ prompt: "x", init_images: [] }, "init_images", /a list of one picture/],
    [{ prompt: "x", init_images: ["R0lGODlh"] }, "init_images", /no PNG, JPEG or WebP/],
    [{ prompt: "x", init_images: ["http://example.com/a.png"] }, "init_images", /not base64/],
    [{ prompt: "x", init_images: [PNG], mask: PNG }, "mask", /not served/],
    [{ prompt: "x", init_images: [PNG], initial_noise_multiplier: 1.1 }, "initial_noise_multiplier", /not served/],
    [{ prompt: "x", init_images: [PNG], denoising_strength: 0 }, "denoising_strength", /above 0/],
    [{ prompt: "x", init_images: [PNG], resize_mode: 2 }, "resize_mode", /is 2; 0 and 1/],
    [{ prompt: "x", init_images: [pngHead(600, 400)] }, "resize_mode", /600 x 400 and 512 x 512/],
    [{ prompt: "x", init_images: [PNG], enable_hr: false }, "enable_hr", /unknown field/],
  ])("refuses a bad call by name: %#", async (body, field, message) => {
    const { status, error } = await img2img(body);
    expect({ status, field: error.field }).toEqual({ status: 422, field });
    expect(error.errors).toMatch(message);
  });
});

describe("failures of /sdapi/v1", () => {
  it("are all in the web UI's schema", async () => {
    const unknownRoute = await ask("GET", "controlnet/version", undefined);
    expect(unknownRoute).toMatchObject({ status: 404, json: { error: "HTTPException", code: "NOT_FOUND" } });
    const wrongMethod = await ask("GET", "txt2img", undefined);
    expect(wrongMethod).toMatchObject({ status: 405, json: { error: "HTTPException" } });
    const noKey = await fetch(`${gateway.url}/sdapi/v1/progress`);
    expect(noKey.status).toBe(401);
    expect(noKey.headers.get("www-authenticate")).toMatch(/^Basic realm/);
    expect(await noKey.json()).toMatchObject({ code: "UNAUTHENTICATED", detail: expect.any(String) });
  });

  it("keep the time to come back at, and name memory as the web UI does", async () => {
    worker.next({ kind: "fail", error: new ServingError("OUT_OF_MEMORY", "full") });
    const full = await txt2img({ prompt: "no room" });
    expect(full).toMatchObject({ status: 507, error: { error: "OutOfMemoryError" } });
    worker.next({ kind: "fail", error: new ServingError("DEADLINE_EXCEEDED", "too late", { field: "deadline_ms" }) });
    const late = await txt2img({ prompt: "no time" });
    expect(late.status).toBe(504);
    expect(late.error).not.toHaveProperty("field");
    worker.publish({ ready: false });
    await gateway.until((views) => views.every(({ ready }) => !ready));
    const away = await txt2img({ prompt: "nobody there" });
    worker.publish({ ready: true });
    await gateway.until(allReady);
    expect(away).toMatchObject({ status: 503, error: { code: "NO_WORKER" } });
    expect(Number(away.headers.get("retry-after"))).toBeGreaterThan(0);
  });
});

describe("progress and interrupt", () => {
  it("tell how far a call has come, with a preview unless none is wanted", async () => {
    const { finish, answer } = await held({ prompt: "x", steps: 10, seed: 1, force_task_id: "mine" });
    const seen = await until(
      () => progress(),
      ({ current_image }) => current_image !== null,
    );
    expect(seen).toMatchObject({
      progress: 0.4,
      current_image: Buffer.from("a preview").toString("base64"),
      state: {
        job: "txt2img",
        job_count: 1,
        sampling_step: 4,
        sampling_steps: 10,
        task_id: "mine",
        interrupted: false,
      },
    });
    expect(seen.eta_relative).toBeGreaterThan(0);
    const bare = await get("progress?skip_current_image=true&id_task=mine");
    expect(bare.json).toMatchObject({ progress: 0.4, current_image: null });
    expect((await get("progress?id_task=other")).json).toMatchObject({ progress: 0, state: { job_count: 0 } });
    finish();
    expect((await answer).status).toBe(200);
    expect(await progress()).toMatchObject({
      progress: 0,
      eta_relative: 0,
      state: { job_count: 0, job: "" },
    });
  });

  it("are nobody else's: another tenant sees nothing and ends nothing", async () => {
    const { finish, answer } = await held({ prompt: "secret", steps: 10, force_task_id: "t1" });
    expect((await get("progress", press)).json).toMatchObject({ progress: 0, current_image: null });
    for (const body of [undefined, { force_task_id: "t1" }]) {
      expect((await ask("POST", "interrupt", body, press)).json).toEqual({ found: false });
    }
    finish();
    const { info } = await answer;
    expect(info.atelier.interrupted).toBe(false);
    expect(info.all_seeds).toHaveLength(1);
  });

  it("end the call that is named, and otherwise the newest; it is answered with what was finished", async () => {
    const older = await held({ prompt: "older", steps: 10, force_task_id: "older" });
    const newer = await held({ prompt: "newer", steps: 10, force_task_id: "newer" });
    expect((await ask("POST", "interrupt", { force_task_id: "older" })).json).toEqual({ found: true });
    const first = await older.answer;
    expect(first).toMatchObject({ status: 200, reply: { images: [] } });
    expect(first.info).toMatchObject({ all_seeds: [], atelier: { interrupted: true } });
    const third = await held({ prompt: "third", steps: 10 });
    expect((await ask("POST", "interrupt", undefined)).json).toEqual({ found: true });
    expect((await third.answer).info.atelier.interrupted).toBe(true);
    newer.finish();
    expect((await newer.answer).reply.images).toHaveLength(1);
    await until(
      async () => worker.cancelled.length,
      (count) => count >= 2,
    );
    expect(gateway.inFlight.count).toBe(0);
  });

  it("keep the pictures of the parts before, and under an idempotency key do not count as the answer", async () => {
    const body = { prompt: "many", seed: 5, batch_size: 6 };
    const key = { "idempotency-key": "interrupted" };
    worker.next({ kind: "answer" }, { kind: "hang" });
    const before = worker.requests.length;
    const answer = txt2img(body, shop, key);
    await until(
      async () => worker.requests.length,
      (count) => count === before + 2,
    );
    expect((await progress()).progress).toBeGreaterThanOrEqual(4 / 6);
    await ask("POST", "interrupt", {});
    const { info, reply } = await answer;
    expect(info.all_seeds).toEqual([5, 6, 7, 8]);
    expect(reply.images).toHaveLength(4);
    const whole = await txt2img(body, shop, key);
    expect(whole.headers.get("idempotency-replayed")).toBeNull();
    expect(whole.reply.images).toHaveLength(6);
  });

  it("skip gives up one part and goes on with the next", async () => {
    worker.next({ kind: "hang" }, { kind: "answer" });
    const before = worker.requests.length;
    const answer = txt2img({ prompt: "many", seed: 5, batch_size: 6 });
    await until(
      async () => worker.requests.length,
      (count) => count === before + 1,
    );
    expect((await ask("POST", "skip", undefined)).json).toEqual({ found: true });
    const { info } = await answer;
    expect(info.all_seeds).toEqual([9, 10]);
    expect(info.atelier.interrupted).toBe(false);
  });

  it("refuse what they do not know, by name", async () => {
    expect((await ask("POST", "interrupt", { task: "x" })).json).toMatchObject({
      code: "INVALID_REQUEST",
      field: "task",
    });
    expect((await get("progress?task=x")).json).toMatchObject({ field: "task" });
  });
});

describe("the lists of /sdapi/v1", () => {
  it("name the samplers, spacings and models that there are", async () => {
    const samplers = (await get("samplers")).json as { name: string }[];
    expect(samplers.map(({ name }) => name)).toEqual([
      "DPM++ 2M",
      "DPM++ 2M SDE",
      "Euler",
      "Euler a",
      "DDIM",
      "UniPC",
      "LCM",
    ]);
    expect((await get("schedulers")).json).toMatchObject([{ label: "Automatic" }, { label: "Karras" }]);
    expect((await get("sd-models")).json).toMatchObject([
      { title: "atelier-tiny [00]", model_name: "atelier-tiny", hash: "00", sha256: "00" },
    ]);
  });

  it.each([
    ["sd-vae", []],
    ["loras", []],
    ["hypernetworks", []],
    ["face-restorers", []],
    ["prompt-styles", []],
    ["script-info", []],
    ["latent-upscale-modes", []],
    ["realesrgan-models", []],
    ["extensions", []],
    ["scripts", { txt2img: [], img2img: [] }],
    ["embeddings", { loaded: {}, skipped: {} }],
  ])("say that there is none of %s", async (path, value) => {
    expect(await get(path)).toMatchObject({ status: 200, json: value });
  });

  it.each(["upscalers", "cmd-flags", "memory"])("have %s", async (path) => {
    expect((await get(path)).status).toBe(200);
  });

  it("let options be set to what they are, and to nothing else", async () => {
    const options = (await get("options")).json as Record<string, unknown>;
    expect(options["sd_model_checkpoint"]).toBe("atelier-tiny [00]");
    expect(await ask("POST", "options", options)).toMatchObject({ status: 200, json: null });
    expect((await ask("POST", "options", { sd_model_checkpoint: "atelier-tiny" })).status).toBe(200);
    for (const [name, value] of Object.entries({ sd_model_checkpoint: "other", CLIP_stop_at_last_layers: 2, x: 1 })) {
      const refused = await ask("POST", "options", { [name]: value });
      expect(refused).toMatchObject({ status: 422, json: { code: "INVALID_REQUEST", field: name } });
    }
    expect(await ask("POST", "refresh-checkpoints", undefined)).toMatchObject({ status: 200, json: null });
  });

  it("show a key no models but its own", async () => {
    const none = testKey({ tenant: "none", models: ["another"] });
    const own = await startGateway([worker.address], { ATELIER_KEYS: keysJson([none]) });
    onTestFinished(() => own.stop());
    await own.until(allReady);
    const response = await fetch(`${own.url}/sdapi/v1/sd-models`, { headers: basic(none) });
    expect(await response.json()).toEqual([]);
  });
});

interface Info {
  seed: number;
  all_seeds: number[];
  infotexts: string[];
  denoising_strength: number | null;
  atelier: { ignored: string[]; interrupted: boolean; receipts: object[] };
}

interface Reply {
  images: string[];
  parameters: Record<string, unknown>;
  info: string;
}

interface Told {
  status: number;
  headers: Headers;
  json: unknown;
}

const txt2img = (body: object, key?: TestKey, headers?: Record<string, string>) => call("txt2img", body, key, headers);
const img2img = (body: object) => call("img2img", body);
interface Progress {
  progress: number;
  eta_relative: number;
  current_image: string | null;
}

const progress = async () => (await get("progress")).json as Progress;
const get = (path: string, key?: TestKey) => ask("GET", path, undefined, key);

async function call(path: string, body: object, key?: TestKey, headers?: Record<string, string>) {
  const { json, ...rest } = await ask("POST", path, body, key, headers);
  const reply = json as Reply;
  return {
    ...rest,
    reply,
    info: (rest.status === 200 ? JSON.parse(reply.info) : undefined) as Info,
    error: json as { code: string; error: string; errors: string; detail: unknown; field?: string },
  };
}

/** With the key as the password, as the web UI's clients send it. */
async function ask(
  method: string,
  path: string,
  body: object | undefined,
  key = shop,
  headers: Record<string, string> = {},
): Promise<Told> {
  const response = await fetch(`${gateway.url}/sdapi/v1/${path}`, {
    method,
    headers: { ...basic(key), ...headers, ...(body && { "content-type": "application/json" }) },
    ...(body && { body: JSON.stringify(body) }),
  });
  return { status: response.status, headers: response.headers, json: await response.json() };
}

function basic({ text }: TestKey): Record<string, string> {
  return { authorization: `Basic ${Buffer.from(`anyone:${text}`).toString("base64")}` };
}

/** A call that has come to step 4 of 10 and stays there until it is told to finish. */
async function held(body: object) {
  const { promise, resolve } = Promise.withResolvers<void>();
  const preview = Buffer.from("a preview");
  worker.next({ kind: "answer", after: promise, progress: [{ stage: Stage.DENOISE, stepsDone: 4, preview }] });
  const before = worker.requests.length;
  const answer = txt2img(body);
  await until(
    async () => worker.requests.length,
    (count) => count > before,
  );
  return { finish: resolve, answer };
}

async function until<T>(look: () => Promise<T>, enough: (seen: T) => boolean): Promise<T> {
  for (let turn = 0; turn < 500; turn++) {
    const seen = await look();
    if (enough(seen)) return seen;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error("it never came to that");
}

function pngHead(width: number, height: number): string {
  const head = Buffer.alloc(33);
  head.set([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  head.writeUInt32BE(width, 16);
  head.writeUInt32BE(height, 20);
  return head.toString("base64");
}
