import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { bearer, keysJson, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

const TOKEN = "between-services-of-ours";
const BEARER = { authorization: `Bearer ${TOKEN}` };
const ops = testKey({ tenant: "ops", role: "admin" });
const admin = bearer(ops);
const shop = { tenant: "shop", keyId: "k1", role: "user", priority: "standard", weight: 1, models: null };

let worker: FakeWorker;
let gateway: TestGateway;
beforeAll(async () => {
  worker = await FakeWorker.start();
  gateway = await startGateway([worker.address], {
    ATELIER_INTERNAL_TOKEN: TOKEN,
    ATELIER_PRICE_PER_DEVICE_HOUR: "36",
    ATELIER_CURRENCY: "EUR",
    ATELIER_CORS_ORIGINS: "https://shop.example",
    ATELIER_KEYS: keysJson([ops], [{ id: "small", images_per_month: 10, price_per_device_hour: 72 }]),
  });
  await gateway.until(allReady);
});
afterAll(async () => {
  await gateway.stop();
  await worker.stop();
});

describe("POST /internal/v1/complete", () => {
  const complete = (drafts: unknown[], caller: object = shop) => post("complete", { caller, drafts });

  it("fills in the model's defaults, in order, and tells the tenant's price", async () => {
    const { body } = await complete([
      {},
      { width: 256, height: 256, steps: 4, sampler: "ddim", format: "webp", quality: 80 },
    ]);
    expect(body).toMatchObject({ pricePerDeviceHour: 36, currency: "EUR", imagesLeft: null, deviceMsLeft: null });
    expect(body.shapes).toMatchObject([
      { ok: true, shape: { format: "png", quality: null, karrasSigmas: false } },
      { ok: true, shape: { width: 256, height: 256, steps: 4, sampler: "ddim", format: "webp", quality: 80 } },
    ]);
    const { shape } = body.shapes[0]!;
    expect(Object.keys(shape!)).toEqual([
      "model",
      "width",
      "height",
      "steps",
      "guidanceScale",
      "sampler",
      "karrasSigmas",
      "format",
      "quality",
      "predictedDeviceMs",
    ]);
  });

  it("says of each draft what is wrong with it, and goes on", async () => {
    const { status, body } = await complete([
      { width: 7 },
      { steps: "many" },
      { colour: "red" },
      { model: "nobody's" },
      null,
      {},
    ]);
    expect(status).toBe(200);
    expect(body.shapes).toMatchObject([
      { ok: false, code: "INVALID_REQUEST", field: "width" },
      { ok: false, code: "INVALID_REQUEST", field: "steps" },
      { ok: false, code: "INVALID_REQUEST", field: "colour" },
      { ok: false, code: "MODEL_NOT_FOUND", field: "model" },
      { ok: false, code: "INVALID_REQUEST", field: null },
      { ok: true },
    ]);
  });

  it("lets a caller have no models but its own", async () => {
    const { body } = await complete([{ model: "secret" }], { ...shop, models: ["other"] });
    expect(body.shapes).toMatchObject([{ ok: false, code: "FORBIDDEN", field: "model" }]);
  });

  it("fails as a whole where it is nothing of the drafts', as where no worker is there", async () => {
    const empty = await startGateway([]);
    const answer = await fetch(`${empty.url}/internal/v1/complete`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ caller: shop, drafts: [{}] }),
    });
    expect([answer.status, ((await answer.json()) as Answer).error!.code]).toEqual([503, "NO_WORKER"]);
    await empty.stop();
  });

  it("takes 200 at once and no more", async () => {
    expect((await complete(Array.from({ length: 200 }, () => ({})))).body.shapes).toHaveLength(200);
    const { status, body } = await complete(Array.from({ length: 201 }, () => ({})));
    expect([status, body.error!.field]).toEqual([400, "drafts"]);
  });
});

describe("POST /internal/v1/usage", () => {
  const book = (images: number, more: object = {}) =>
    post("usage", {
      totals: [
        { jobId: "job_1", tenant: "small", keyId: "k1", model: "tiny", images, deviceMs: images * 1000.4, ...more },
      ],
    });

  it("books what is new into the usage that callers see, once, and says when the month is used up", async () => {
    expect((await book(4)).body).toEqual([{ tenant: "small", exhausted: null }]);
    expect((await book(9)).body).toEqual([{ tenant: "small", exhausted: null }]);
    expect((await book(9)).body).toEqual([{ tenant: "small", exhausted: null }]);
    expect((await book(4)).body).toEqual([{ tenant: "small", exhausted: null }]);
    const left = await post("complete", { caller: { ...shop, tenant: "small" }, drafts: [] });
    expect(left.body).toMatchObject({ imagesLeft: 1, deviceMsLeft: null, pricePerDeviceHour: 72 });
    expect((await book(1, { jobId: "job_2" })).body).toEqual([{ tenant: "small", exhausted: "images_per_month" }]);

    const usage = await fetch(`${gateway.url}/v1/usage?tenant=small&group_by=key,model`, { headers: admin });
    expect(await usage.json()).toMatchObject({
      total: { requests: 0, images: 10, device_seconds: 10.004, cost: 0.20008 },
      rows: [{ key: "k1", model: "tiny", images: 10 }],
    });
  });

  it.each([{ images: -1 }, { tenant: "a b" }, { model: "a\tb" }, { jobId: "../job" }, { deviceMs: null }])(
    "refuses %j",
    async (fields) => {
      expect((await book(1, fields)).status).toBe(400);
    },
  );
});

describe("routes between services", () => {
  it.each([
    ["without the token", {}, 401],
    ["with another token", { authorization: "Bearer between-them" }, 401],
    ["with a key of a caller's", admin, 401],
    ["from a page, whatever it has", { ...BEARER, origin: "https://shop.example" }, 403],
  ])("are closed %s", async (_what, headers, status) => {
    for (const path of ["complete", "usage"]) expect((await post(path, {}, headers)).status, path).toBe(status);
  });

  it.each([
    ["a proxy on this machine passed on", { "x-forwarded-for": "203.0.113.9" }],
    ["a page reached by another name of this machine", { host: "evil.example" }],
  ])("are open to this machine where there is no token, and not to what %s", async (_what, headers) => {
    const open = await startGateway([]);
    const ask = (more: object) =>
      open.app.inject({
        method: "POST",
        url: "/internal/v1/usage",
        payload: { totals: [] },
        headers: { host: "127.0.0.1:8080", ...more },
      });
    expect((await ask({})).statusCode).toBe(200);
    expect((await ask(headers)).statusCode).toBe(403);
    await open.stop();
  });

  it("are in no document", async () => {
    const document = (await (await fetch(`${gateway.url}/openapi.json`)).json()) as { paths: object };
    expect(Object.keys(document.paths).filter((path) => path.includes("internal"))).toEqual([]);
  });
});

interface Answer {
  readonly shapes: readonly { readonly ok: boolean; readonly shape?: object }[];
  readonly error?: { readonly code: string; readonly field?: string };
}

async function post(path: string, body: object, headers: object = BEARER): Promise<{ status: number; body: Answer }> {
  const answer = await fetch(`${gateway.url}/internal/v1/${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  return { status: answer.status, body: (await answer.json()) as Answer };
}
