import { createRequire } from "node:module";
import { Validator } from "@seriousme/openapi-schema-validator";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type JobsWorld, startJobs } from "../testing/jobs-world.ts";
import type { JobJson } from "./job-json.ts";

const OTHER = { tenant: "press", keyId: "key2" };
const OPERATOR = { tenant: "ops", keyId: "key3", role: "operator" } as const;

let world: JobsWorld;
beforeAll(async () => {
  world = await startJobs();
});
afterAll(() => world.stop());

describe("submitting a sheet", () => {
  it("keeps a job and says where it is, whatever the sheet came in", async () => {
    const form = new FormData();
    form.set("job", JSON.stringify({ name: "launch", template: { prompt: "a {product}" } }));
    form.set("sheet", new Blob(["product\nmug\nbowl\n"], { type: "text/csv" }), "sheet.csv");
    const answers = await Promise.all([
      world.ask("/v1/jobs", { method: "POST", body: form }),
      submit("product\nmug\nbowl\n", `?name=launch&template=${encodeURIComponent("a {product}")}`),
      submit('{"prompt":"a mug"}\n{"prompt":"a bowl"}\n', "?name=launch", { "content-type": "application/x-ndjson" }),
      submit(JSON.stringify({ name: "launch", items: [{ prompt: "a mug" }, { prompt: "a bowl" }] }), "", {
        "content-type": "application/json",
      }),
    ]);
    for (const answer of answers) {
      const job = (await answer.json()) as JobJson;
      expect([answer.status, answer.headers.get("location"), job.name, job.tenant, job.item_count]).toEqual([
        201,
        `/v1/jobs/${job.id}`,
        "launch",
        "shop",
        2,
      ]);
      expect(await (await world.ask(`/v1/jobs/${job.id}`)).json()).toMatchObject({ id: job.id, counts: { queued: 2 } });
      await removed(job.id);
    }
  });

  it("says what it would come to and keeps nothing, on a dry run", async () => {
    const before = await listed();
    for (const path of ["/v1/jobs?dry_run=true", "/v1/jobs/preview"]) {
      const answer = await world.ask(path, { method: "POST", headers: CSV, body: "prompt\na mug\na bowl\n" });
      expect([answer.status, await answer.json()]).toMatchObject([
        200,
        {
          dry_run: true,
          item_count: 2,
          predicted: { device_seconds: 2, cost: 0.002, currency: "EUR" },
          eta_ms: null,
          items: [
            { row: 1, prompt: "a mug" },
            { row: 2, prompt: "a bowl" },
          ],
        },
      ]);
    }
    expect(await listed()).toEqual(before);
  });

  it("makes one job of a submission that comes twice under one key, and none of another under it", async () => {
    const headers = { ...CSV, "idempotency-key": "order-1" };
    const first = await submit("prompt\na mug\n", "", headers);
    const again = await submit("prompt\na mug\n", "", headers);
    const [job, same] = [(await first.json()) as JobJson, (await again.json()) as JobJson];
    expect([same.id, again.status, again.headers.get("idempotency-replayed")]).toEqual([job.id, 201, "true"]);
    const other = await submit("prompt\na bowl\n", "", headers);
    expect([other.status, ((await other.json()) as Failure).error.field]).toEqual([422, "idempotency-key"]);
    await removed(job.id);
  });

  it.each([
    ["no body", undefined, "", {}, 415, undefined],
    ["a type that is no sheet's", "x", "", { "content-type": "image/png" }, 400, "format"],
    ["an unknown option", "prompt\nx\n", "?colour=red", CSV, 400, "colour"],
    ["dry_run that is neither", "prompt\nx\n", "?dry_run=1", CSV, 400, "dry_run"],
  ])("refuses %s", async (_what, body, query, headers, status, field) => {
    const answer = await world.ask(`/v1/jobs${query}`, {
      method: "POST",
      headers,
      ...(body !== undefined && { body }),
    });
    expect([answer.status, ((await answer.json()) as Failure).error.field]).toEqual([status, field]);
  });

  it.each([
    [
      "a sheet before its options' end",
      [
        ["sheet", new Blob(["x"])],
        ["job", "{}"],
      ],
      "",
      "sheet",
    ],
    ["options that are no JSON", [["job", "{"]], "", "job"],
    ["another field", [["name", "launch"]], "", "name"],
    ["another file", [["picture", new Blob(["x"])]], "", "picture"],
    ["no sheet", [["job", "{}"]], "", "sheet"],
    ["options in the query", [["job", "{}"]], "?name=launch", "name"],
  ] as const)("refuses a form with %s", async (_what, fields, query, field) => {
    const form = new FormData();
    for (const [name, value] of fields) {
      if (typeof value === "string") form.set(name, value);
      else form.set(name, value, "sheet.csv");
    }
    const answer = await world.ask(`/v1/jobs${query}`, { method: "POST", body: form });
    const { error } = (await answer.json()) as Failure;
    expect([answer.status, error.field ?? error.message]).toEqual([400, expect.stringContaining(field)]);
  });

  it("is refused at a broken line of a sheet that is still coming, by its number", async () => {
    const lines = async function* () {
      yield Buffer.from("prompt\n");
      for (let i = 0; i < 5_000; i++) yield Buffer.from(i === 700 ? "a mug,a cell too many\n" : `a mug number ${i}\n`);
    };
    const body = ReadableStream.from(lines());
    const answer = await world.ask("/v1/jobs", { method: "POST", headers: CSV, body, duplex: "half" });
    expect([answer.status, ((await answer.json()) as Failure).error.message]).toEqual([
      400,
      expect.stringContaining("702"),
    ]);
  });
});

describe("a tenant's jobs", () => {
  it("are nobody else's to see or to change, but operators'", async () => {
    const { id } = await job(["a mug"]);
    const paths = [
      ["GET", ""],
      ["DELETE", ""],
      ["PATCH", "", { priority: "bulk" }],
      ...["pause", "resume", "cancel", "retry", "clone"].map((action) => ["POST", `/${action}`] as const),
      ...["/items", "/items/0", "/items/0/image", "/events", "/manifest", "/archive", "/dead-letters"].map(
        (path) => ["GET", path] as const,
      ),
      ["POST", "/dead-letters/replay"],
      ["GET", "/webhook-deliveries"],
    ] as const;
    for (const [method, path, body] of paths) {
      const init = body === undefined ? {} : { headers: JSON_TYPE, body: JSON.stringify(body) };
      const answer = await world.ask(`/v1/jobs/${id}${path}`, { method, caller: OTHER, ...init });
      expect(`${method} ${path} ${answer.status}`).toBe(`${method} ${path} 404`);
    }
    expect(await listed("?tenant=shop", OTHER)).toEqual(403);
    expect(await listed("?tenant=*", OTHER)).toEqual(403);
    expect(await listed("", OTHER)).toEqual([]);
    expect(await listed("", OPERATOR)).toEqual([]);
    expect(await listed("?tenant=shop", OPERATOR)).toContain(id);
    expect(await listed("?tenant=*", OPERATOR)).toContain(id);
    expect((await world.ask(`/v1/jobs/${id}`, { caller: OPERATOR })).status).toBe(200);
    expect((await world.ask("/v1/dead-letters")).status).toBe(403);
    expect((await world.ask("/v1/dead-letters", { caller: OPERATOR })).status).toBe(200);
    await removed(id);
  });

  it("are listed newest first, in pages, by status and by a part of their name", async () => {
    const ids: string[] = [];
    for (const name of ["spring 1", "spring 2", "autumn"]) ids.unshift((await job(["x"], { name })).id);
    await world.ask(`/v1/jobs/${ids[1]}/pause`, { method: "POST" });
    const first = (await (await world.ask("/v1/jobs?limit=2")).json()) as { jobs: JobJson[]; next: string };
    expect([first.jobs.map(({ id }) => id), first.next]).toEqual([ids.slice(0, 2), ids[1]]);
    expect(await listed(`?limit=2&after=${first.next}`)).toEqual([ids[2]]);
    expect(await listed("?status=paused")).toEqual([ids[1]]);
    expect(await listed("?name=SPRING")).toEqual(ids.slice(1));
    for (const query of ["?limit=0", "?status=late", "?after=job_none", "?colour=red"]) {
      expect(await listed(query), query).toBe(400);
    }
    for (const id of ids) await removed(id);
  });

  it("are paused, resumed, given another class, cancelled and deleted", async () => {
    const { id } = await job(["a mug", "a bowl"]);
    const post = async (path: string) =>
      (await (await world.ask(`/v1/jobs/${id}${path}`, { method: "POST" })).json()) as JobJson;
    expect((await post("/pause")).status).toBe("paused");
    expect((await post("/resume")).status).toBe("queued");
    const change = { method: "PATCH", headers: JSON_TYPE, body: '{"priority":"standard"}' };
    expect(await (await world.ask(`/v1/jobs/${id}`, change)).json()).toMatchObject({ priority: "standard" });
    const refused = await world.ask(`/v1/jobs/${id}`, { ...change, caller: { priority: "bulk" } });
    expect([refused.status, ((await refused.json()) as Failure).error.field]).toEqual([403, "priority"]);
    expect(await post("/cancel")).toMatchObject({ status: "cancelled", counts: { cancelled: 2 } });
    expect((await world.ask(`/v1/jobs/${id}/resume`, { method: "POST" })).status).toBe(409);
    expect(await removed(id)).toBe(204);
    expect(await removed(id)).toBe(404);
  });

  it("can be made again with other seeds", async () => {
    const { id } = await job(["a mug"], { name: "first" });
    const clone = { method: "POST", headers: JSON_TYPE, body: '{"name":"second","new_seeds":true}' };
    const answer = await world.ask(`/v1/jobs/${id}/clone`, clone);
    const made = (await answer.json()) as JobJson;
    expect([answer.status, made.name, made.item_count]).toEqual([201, "second", 1]);
    expect(answer.headers.get("location")).toBe(`/v1/jobs/${made.id}`);
    for (const one of [id, made.id]) await removed(one);
  });
});

describe("what a job made", () => {
  let id: string;
  beforeAll(async () => {
    id = (await job(["=SUM(A1)", "a bowl, red", "杯子", "a plate"], { name: "Frühling" })).id;
    const [first, second, third, fourth] = await world.work.take(4);
    await world.work.finish(first!);
    await world.work.finish(third!);
    await world.work.fail(second!);
    await world.work.bury(fourth!);
    await until(id, ({ status, ended_at }) => status === "done" && ended_at !== null);
  });
  afterAll(() => removed(id));

  it("is listed by item, by state, in pages", async () => {
    const items = async (query = "") => (await (await world.ask(`/v1/jobs/${id}/items${query}`)).json()) as Items;
    const all = await items();
    expect(all.items.map(({ index, state }) => `${index} ${state}`)).toEqual([
      "0 done",
      "1 failed",
      "2 done",
      "3 failed",
    ]);
    expect(all.items[1]).toMatchObject({
      prompt: "a bowl, red",
      error: { code: "NUMERIC_FAILURE", message: "NaN at step 3", attempts: 1 },
    });
    const failed = await items("?state=failed&limit=1");
    expect([failed.items.map(({ index }) => index), failed.next]).toEqual([[1], 1]);
    expect((await items(`?state=failed&limit=1&after=${failed.next}`)).items.map(({ index }) => index)).toEqual([3]);
    expect((await items("?after=3")).items).toEqual([]);
  });

  it("is a table that no spreadsheet runs a formula of", async () => {
    const answer = await world.ask(`/v1/jobs/${id}/items?state=done`, { headers: { accept: "text/csv" } });
    expect(answer.headers.get("content-type")).toBe("text/csv; charset=utf-8");
    expect(answer.headers.get("content-disposition")).toBe(
      `attachment; filename="Fr_hling.csv"; filename*=UTF-8''Fr%C3%BChling.csv`,
    );
    const bytes = Buffer.from(await answer.arrayBuffer());
    const [header, first, second, end] = bytes.toString("utf8").slice(1).split("\r\n");
    expect(bytes.subarray(0, 3)).toEqual(Buffer.from([0xef, 0xbb, 0xbf]));
    expect(header).toMatch(/^index,row,sku,variant,preset,state,file,prompt,/);
    expect(first).toContain(",'=SUM(A1),");
    expect([second!.split(",")[0], end]).toEqual(["2", ""]);
  });

  it("is known picture by picture, with all that it takes to make it again", async () => {
    const one = await (await world.ask(`/v1/jobs/${id}/items/2`)).json();
    expect(one).toMatchObject({
      index: 2,
      state: "done",
      prompt: "杯子",
      parameters: { sampler: "dpmpp_2m", guidance_scale: 7.5, karras_sigmas: false, format: "png", quality: null },
      worker: "w1",
      result: { media_type: "image/png", model_digest: "sha256:tiny", device_ms: 12.5, attempts: 1, simulated: false },
    });
    const missing = await world.ask(`/v1/jobs/${id}/items/4`);
    expect([missing.status, ((await missing.json()) as Failure).error.message]).toEqual([
      404,
      "there is no item 4; the job's are 0 to 3",
    ]);
  });

  it("is there as a picture, under its item's name", async () => {
    const answer = await world.ask(`/v1/jobs/${id}/items/2/image`);
    expect([answer.status, answer.headers.get("content-type"), await answer.text()]).toEqual([
      200,
      "image/png",
      "PNG of 杯子",
    ]);
    expect(answer.headers.get("content-disposition")).toMatch(/^inline; filename=".*\.png"/);
    const failed = await world.ask(`/v1/jobs/${id}/items/1/image`);
    expect([failed.status, ((await failed.json()) as Failure).error.message]).toEqual([
      404,
      "item 1 is failed: it has no picture",
    ]);
  });

  it("has a manifest, written at its end, that says the same as one made now", async () => {
    const text = await (await world.ask(`/v1/jobs/${id}/manifest`)).text();
    const object = await world.objects.get(`jobs/${id}/manifest.jsonl`);
    expect((await object!.body.toArray()).join("")).toBe(text);
    const lines = text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(lines).toHaveLength(4);
    expect(lines[0]).toEqual({
      index: 0,
      row: 1,
      sku: null,
      variant: 1,
      preset: null,
      prompt: "=SUM(A1)",
      negative_prompt: expect.any(String),
      seed: expect.any(Number),
      model: "tiny",
      model_digest: "sha256:tiny",
      parameters: {
        width: 512,
        height: 512,
        steps: 20,
        guidance_scale: 7.5,
        sampler: "dpmpp_2m",
        karras_sigmas: false,
        format: "png",
        quality: null,
      },
      file: expect.stringMatching(/\.png$/),
      object_key: `jobs/${id}/pictures/0000000-v1.png`,
      sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
      bytes: 15,
      state: "done",
      reason: null,
      attempts: 1,
      worker: "w1",
      device_ms: 12.5,
      simulated: false,
      verdict: null,
    });
    expect(lines[1]).toMatchObject({
      state: "failed",
      reason: { code: "NUMERIC_FAILURE", message: "NaN at step 3" },
      object_key: null,
      sha256: null,
      worker: null,
    });
  });

  it("comes as a ZIP of what is done, under the items' names, with the manifest", async () => {
    const answer = await world.ask(`/v1/jobs/${id}/archive`);
    expect(answer.headers.get("content-disposition")).toContain("Fr%C3%BChling.zip");
    const files = unzipped(Buffer.from(await answer.arrayBuffer()));
    const { items } = (await (await world.ask(`/v1/jobs/${id}/items?state=done`)).json()) as Items;
    expect([...files.keys()]).toEqual([...items.map(({ file }) => file), "manifest.jsonl"]);
    expect(files.get(items[1]!.file)).toBe("PNG of 杯子");
    expect(files.get("manifest.jsonl")).toBe(await (await world.ask(`/v1/jobs/${id}/manifest`)).text());
  });

  it("has its dead letters, which can be queued again, and its failed items too", async () => {
    const letters = await (await world.ask(`/v1/jobs/${id}/dead-letters`)).json();
    expect(letters).toMatchObject({
      dead_letters: [{ job_id: id, index: 3, code: "DEVICE_UNAVAILABLE", message: "it kills workers", worker: "w1" }],
      more: false,
    });
    const all = await (await world.ask("/v1/dead-letters", { caller: OPERATOR })).json();
    expect(all).toEqual(letters);

    const replayed = await world.ask(`/v1/jobs/${id}/dead-letters/replay`, { method: "POST" });
    expect(await replayed.json()).toMatchObject({ items: 1, job: { id, status: "running" } });
    await world.work.make(1);
    await until(id, ({ status, ended_at }) => status === "done" && ended_at !== null);
    expect(await (await world.ask(`/v1/jobs/${id}/dead-letters`)).json()).toEqual({ dead_letters: [], more: false });

    const wrong = { method: "POST", headers: JSON_TYPE, body: '{"items":[0]}' };
    expect((await world.ask(`/v1/jobs/${id}/retry`, wrong)).status).toBe(409);
    const retried = await world.ask(`/v1/jobs/${id}/retry`, { method: "POST" });
    expect(await retried.json()).toMatchObject({ items: 1 });
    await world.work.make(1);
    const { counts } = await until(id, ({ status, ended_at }) => status === "done" && ended_at !== null);
    expect(counts).toMatchObject({ done: 4, failed: 0 });
    const manifest = await (await world.ask(`/v1/jobs/${id}/manifest`)).text();
    expect(manifest.match(/"state":"done"/g)).toHaveLength(4);
  });
});

describe("what runs", () => {
  it("has a manifest and an archive as far as it is", async () => {
    const { id } = await job(["a mug", "a bowl"]);
    await world.work.make(1);
    await until(id, ({ counts }) => counts["done"] === 1);
    const states = (await (await world.ask(`/v1/jobs/${id}/manifest`)).text()).match(/"state":"\w+"/g);
    expect(states).toEqual(['"state":"done"', '"state":"queued"']);
    expect(await world.objects.head(`jobs/${id}/manifest.jsonl`)).toBeUndefined();
    const files = unzipped(Buffer.from(await (await world.ask(`/v1/jobs/${id}/archive?state=done`)).arrayBuffer()));
    expect(files.size).toBe(2);
    await removed(id);
  });
});

describe("presets", () => {
  it("are each tenant's own", async () => {
    const put = { method: "PUT", headers: JSON_TYPE, body: '{"prompt_suffix":", red leaves"}' };
    expect(await (await world.ask("/v1/presets/autumn", put)).json()).toMatchObject({ name: "autumn" });
    expect(await (await world.ask("/v1/presets")).json()).toMatchObject({ presets: [{ name: "autumn" }] });
    expect((await world.ask("/v1/presets/autumn")).status).toBe(200);
    expect(await (await world.ask("/v1/presets", { caller: OTHER })).json()).toEqual({ presets: [] });
    expect((await world.ask("/v1/presets/autumn", { caller: OTHER })).status).toBe(404);
    expect((await world.ask("/v1/presets/autumn", { method: "DELETE" })).status).toBe(204);
    expect((await world.ask("/v1/presets/autumn")).status).toBe(404);
  });
});

describe("who asks", () => {
  it("is what a gateway says; nobody else is answered", async () => {
    expect((await fetch(`${world.url}/v1/jobs`)).status).toBe(401);
    expect((await fetch(`${world.url}/v1/jobs`, { headers: { "x-atelier-caller": "e30" } })).status).toBe(401);
    expect((await world.ask("/v1/jobs", { headers: { origin: "https://shop.example" } })).status).toBe(403);
    expect((await world.ask("/v1/jobs", { headers: { "x-forwarded-for": "203.0.113.9" } })).status).toBe(403);
    expect((await world.ask("/v1/jobs", { headers: { authorization: "Bearer whatever" } })).status).toBe(200);
  });

  it("shows the token where there is one", async () => {
    const guarded = await startJobs({ ATELIER_INTERNAL_TOKEN: "between-services-of-ours" });
    const asked = async (authorization: string) =>
      (await guarded.ask("/v1/jobs", { headers: { authorization } })).status;
    expect(await asked("Bearer between-services-of-theirs")).toBe(401);
    expect(await asked("")).toBe(401);
    expect(await asked("Bearer between-services-of-ours")).toBe(200);
    await guarded.stop();
  });
});

describe("GET /openapi.json", () => {
  it("is valid OpenAPI 3.1 and holds every route, each with a summary and its failures", async () => {
    const document = (await (await fetch(`${world.url}/openapi.json`)).json()) as OpenApi;
    const validator = new Validator();
    expect(await validator.validate(structuredClone(document) as unknown as Record<string, unknown>)).toEqual({
      valid: true,
    });
    const documented = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path.replaceAll(/\{(\w+)\}/g, ":$1")}`),
    );
    const printed = world.app.printRoutes({ commonPrefix: false }).matchAll(/\(([A-Z, ]+)\)/g);
    const listed = [...printed].flatMap(([, methods]) => methods!.split(", ")).filter((method) => method !== "HEAD");
    const OPERATIONS = 3; // health, readiness and metrics are for whoever runs it
    expect(documented).toHaveLength(listed.length - OPERATIONS);
    for (const [path, methods] of Object.entries(document.paths)) {
      if (path === "/openapi.json") continue;
      for (const [method, { operationId, summary, responses }] of Object.entries(methods)) {
        expect([operationId, summary], `${method} ${path}`).toEqual([expect.any(String), expect.any(String)]);
        expect(Object.keys(responses), `${method} ${path}`).toEqual(expect.arrayContaining(["401", "403", "503"]));
      }
    }
  });
});

interface Failure {
  error: { code: string; message: string; field?: string };
}

interface Items {
  items: { index: number; state: string; file: string; prompt: string }[];
  next: number | null;
}

interface OpenApi {
  paths: Record<string, Record<string, { operationId?: string; summary?: string; responses: object }>>;
}

const CSV = { "content-type": "text/csv" };
const JSON_TYPE = { "content-type": "application/json" };

function submit(body: string, query = "", headers: Record<string, string> = CSV): Promise<Response> {
  return world.ask(`/v1/jobs${query}`, { method: "POST", headers, body });
}

async function job(prompts: readonly string[], more: object = {}): Promise<JobJson> {
  const body = JSON.stringify({ priority: "bulk", ...more, items: prompts.map((prompt) => ({ prompt })) });
  const answer = await submit(body, "", JSON_TYPE);
  expect(answer.status).toBe(201);
  return (await answer.json()) as JobJson;
}

async function removed(id: string): Promise<number> {
  return (await world.ask(`/v1/jobs/${id}`, { method: "DELETE" })).status;
}

/** Ids, or the status of a refusal. */
async function listed(query = "", caller: object = {}): Promise<string[] | number> {
  const answer = await world.ask(`/v1/jobs${query}`, { caller });
  if (answer.status !== 200) return answer.status;
  return ((await answer.json()) as { jobs: JobJson[] }).jobs.map(({ id }) => id);
}

async function until(id: string, holds: (job: JobJson) => boolean): Promise<JobJson> {
  for (;;) {
    const now = (await (await world.ask(`/v1/jobs/${id}`)).json()) as JobJson;
    if (holds(now)) return now;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** By another's reader of archives. */
function unzipped(archive: Buffer): Map<string, string> {
  const AdmZip = createRequire(import.meta.url)("adm-zip") as new (
    file: Buffer,
  ) => { getEntries(): { entryName: string; getData(): Buffer }[] };
  const entries = new AdmZip(archive).getEntries();
  return new Map(entries.map((entry) => [entry.entryName, entry.getData().toString("utf8")]));
}
