import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { bearer, keysJson, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("the admin API of keys and tenants", () => {
  const admin = testKey({ role: "admin", tenant: "ops" });
  const fixed = testKey({ tenant: "press" });
  let worker: FakeWorker;
  let gateway: TestGateway;

  beforeAll(async () => {
    worker = await FakeWorker.start();
    const tenants = [{ id: "press", requests_per_minute: 5 }];
    gateway = await startGateway([worker.address], { ATELIER_KEYS: keysJson([admin, fixed], tenants) });
    await gateway.until(allReady);
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
  });

  it("makes a key with defaults for what is not said, and tells its secret once", async () => {
    const made = await ask("POST", "/v1/admin/keys", { name: "shop" });
    expect(made.status).toBe(201);
    const { key, ...rest } = made.body;
    expect(rest).toEqual({
      id: key.split("_")[1],
      name: "shop",
      tenant: "default",
      role: "user",
      scopes: ["generate", "jobs", "models", "usage"],
      priority: "interactive",
      models: null,
      adapters: null,
      created_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
      expires_at: null,
      last_used_at: null,
      previous_until: null,
      source: "store",
    });
    const read = await ask("GET", `/v1/admin/keys/${rest.id}`);
    expect(read.body).toEqual(rest);
    const listed = JSON.stringify((await ask("GET", "/v1/admin/keys")).body);
    expect(listed).toContain(rest.id);
    expect(listed).not.toMatch(/sha256|atk_/);
  });

  it("changes what is given, which is in force at once, and notes when a key was used", async () => {
    await ask("PUT", "/v1/admin/tenants/heavy", { weight: 2.5 });
    const { id, key } = (await ask("POST", "/v1/admin/keys", { name: "shop", tenant: "heavy" })).body;
    const use = () => fetch(`${gateway.url}/v1/models`, { headers: bearer({ text: key }) });
    expect((await use()).status).toBe(200);
    const changed = await ask("PATCH", `/v1/admin/keys/${id}`, { scopes: ["generate"], priority: "bulk" });
    expect(changed.body).toMatchObject({ name: "shop", scopes: ["generate"], priority: "bulk" });
    expect(changed.body.last_used_at).not.toBeNull();
    expect((await use()).status).toBe(403);
    const urgent = await generate(key, { prompt: "x" });
    expect(urgent.status).toBe(200);
    // The class is the key's, the weight its tenant's.
    expect(worker.requests.at(-1)!.order).toMatchObject({ priorityClass: 3, tenant: "heavy", tenantWeight: 2.5 });
  });

  it("sets all of a tenant's settings, and shows those of one that nobody set", async () => {
    const set = await ask("PUT", "/v1/admin/tenants/shop", { requests_per_minute: 7, models: ["atelier-tiny"] });
    const rest = { images_per_minute: null, concurrent_requests: null, images_per_month: null, adapters: null };
    const more = { device_seconds_per_month: null, price_per_device_hour: null, weight: null };
    expect(set.body).toEqual({
      id: "shop",
      requests_per_minute: 7,
      models: ["atelier-tiny"],
      source: "store",
      ...rest,
      ...more,
    });
    const again = await ask("PUT", "/v1/admin/tenants/shop", {});
    expect(again.body).toMatchObject({ requests_per_minute: null, models: null });
    expect((await ask("GET", "/v1/admin/tenants/new")).body).toMatchObject({ id: "new", source: "default" });
    const ids = (await ask("GET", "/v1/admin/tenants")).body.tenants.map(({ id }: { id: string }) => id);
    expect(ids).toEqual(["default", "heavy", "ops", "press", "shop"]);
  });

  const far = "2999-01-01T00:00:00Z";
  it.each([
    ["no name", {}, "name", /name is missing; it must be a text of 1 to 200 characters/],
    ["an empty name", { name: "" }, "name", /name is ""/],
    ["a tenant that could be a path", { name: "x", tenant: "../x" }, "tenant", /a name of 1 to 64 letters, digits/],
    ["a role that there is not", { name: "x", role: "king" }, "role", /one of user, operator, admin/],
    ["no scope", { name: "x", scopes: [] }, "scopes", /a list of generate, jobs, models, usage, admin/],
    [
      "a scope that there is not",
      { name: "x", scopes: ["all"] },
      "scopes[0]",
      /one of generate, jobs, models, usage, admin/,
    ],
    ["a class that there is not", { name: "x", priority: "urgent" }, "priority", /one of interactive, standard, bulk/],
    ["a list that is none", { name: "x", models: "tiny" }, "models", /models is "tiny"; it must be a list.*, or null/],
    ["a list of numbers", { name: "x", models: [1] }, "models[0]", /models\[0\] is 1/],
    ["a moment that is none", { name: "x", expires_at: "soon" }, "expires_at", /a time in ISO 8601.*, or null/],
    ["a moment that has passed", { name: "x", expires_at: "2020-01-01T00:00:00Z" }, "expires_at", /has passed/],
    ["a secret of one's own", { name: "x", key: "mine" }, "key", /unknown field "key"/],
    ["an id of one's own", { name: "x", id: "abcdefabcdef" }, "id", /unknown field "id"/],
    ["a hash of one's own", { name: "x", hash: "sha256:00", expires_at: far }, "hash", /unknown field "hash"/],
  ])("refuses to make a key with %s", async (_what, body, field, message) => {
    const refused = await ask("POST", "/v1/admin/keys", body);
    expect([refused.status, refused.body.error.code, refused.body.error.field]).toEqual([
      400,
      "INVALID_REQUEST",
      field,
    ]);
    expect(refused.body.error.message).toMatch(message);
  });

  it.each([
    ["a limit of nothing", { requests_per_minute: 0 }, "requests_per_minute", /from 1 to 1000000000, or null/],
    ["half a request", { images_per_minute: 1.5 }, "images_per_minute", /a whole number/],
    ["a limit in words", { concurrent_requests: "ten" }, "concurrent_requests", /a whole number/],
    ["a limit below nothing", { images_per_month: -1 }, "images_per_month", /from 1/],
    ["more than can be counted", { device_seconds_per_month: 1e10 }, "device_seconds_per_month", /to 1000000000/],
    ["a price below nothing", { price_per_device_hour: -0.1 }, "price_per_device_hour", /a number from 0 to 1000000/],
    ["no weight at all", { weight: 0 }, "weight", /a number from 0.1 to 100, or null/],
    ["a field that there is not", { request_per_minute: 1 }, "request_per_minute", /unknown field/],
    ["a name of its own", { id: "other" }, "id", /unknown field/],
  ])("refuses to set a tenant with %s", async (_what, body, field, message) => {
    const refused = await ask("PUT", "/v1/admin/tenants/shop", body);
    expect([refused.status, refused.body.error.field]).toEqual([400, field]);
    expect(refused.body.error.message).toMatch(message);
  });

  it.each([
    ["GET", "/v1/admin/keys/abcdefabcdef", undefined, 404],
    ["PATCH", "/v1/admin/keys/abcdefabcdef", { name: "x" }, 404],
    ["DELETE", "/v1/admin/keys/abcdefabcdef", undefined, 404],
    ["POST", "/v1/admin/keys/abcdefabcdef/rotate", {}, 404],
    ["GET", "/v1/admin/tenants/a%2Fb", undefined, 400],
    ["PUT", "/v1/admin/tenants/%00", {}, 400],
    ["POST", "/v1/admin/keys", [], 400],
    ["POST", "/v1/admin/tenants/shop", {}, 405],
  ])("answers %s %s as it should", async (method, path, body, status) => {
    expect((await ask(method, path, body)).status).toBe(status);
  });

  it.each([
    [{ grace_seconds: -1 }, /grace_seconds is -1; it must be a whole number from 0 to 2592000/],
    [{ grace_seconds: 2_592_001 }, /from 0 to 2592000/],
    [{ grace_seconds: "1d" }, /grace_seconds is "1d"/],
    [{ grace: 1 }, /unknown field "grace"/],
  ])("refuses a rotation with %j", async (body, message) => {
    const { id } = (await ask("POST", "/v1/admin/keys", { name: "x" })).body;
    const refused = await ask("POST", `/v1/admin/keys/${id}/rotate`, body);
    expect(refused.status).toBe(400);
    expect(refused.body.error.message).toMatch(message);
  });

  it("changes nothing that the configuration brings, and says where to", async () => {
    for (const [method, path, body] of [
      ["DELETE", `/v1/admin/keys/${fixed.id}`, undefined],
      ["PATCH", `/v1/admin/keys/${fixed.id}`, { name: "x" }],
      ["POST", `/v1/admin/keys/${fixed.id}/rotate`, {}],
      ["PUT", "/v1/admin/tenants/press", {}],
    ] as const) {
      const refused = await ask(method, path, body);
      expect([refused.status, refused.body.error.code]).toEqual([409, "CONFLICT"]);
      expect(refused.body.error.message).toContain("comes from the environment; change it there");
    }
  });

  it.each([
    ["?from=yesterday", "from", /first day in UTC, as 2026-11-23/],
    ["?from=2026-02-30", "from", /first day in UTC/],
    ["?from=2026-03-01&to=2026-02-01", "to", /which is before from/],
    ["?from=2020-01-01&to=2026-01-01", "from", /at most 366 at once/],
    ["?group_by=colour", "group_by", /some of tenant, key, model, day/],
    ["?group_by=", "group_by", /some of/],
    ["?tenant=a/b", "tenant", /tenant/],
    ["?group=day", "group", /unknown field "group"/],
  ])("refuses usage%s", async (query, field, message) => {
    const refused = await ask("GET", `/v1/usage${query}`);
    expect([refused.status, refused.body.error.field]).toEqual([400, field]);
    expect(refused.body.error.message).toMatch(message);
  });

  // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for.
  async function ask(method: string, path: string, body?: unknown): Promise<{ status: number; body: any }> {
    const response = await fetch(gateway.url + path, {
      method,
      headers: { ...bearer(admin), ...(body !== undefined && { "content-type": "application/json" }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) };
  }

  const generate = (key: string, body: object) =>
    fetch(`${gateway.url}/generate`, {
      method: "POST",
      headers: { ...bearer({ text: key }), "content-type": "application/json" },
      body: JSON.stringify(body),
    });
});
