import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { hashApiKey, newApiKey } from "@atelier/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeWorker, fakeModel } from "../testing/fake-worker.ts";
import { bearer, keysJson, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

let worker: FakeWorker;
let gateway: TestGateway;
let folder: string;

beforeEach(async () => {
  worker = await FakeWorker.start({ models: [fakeModel("secret-model"), fakeModel("atelier-tiny")] });
  folder = mkdtempSync(join(tmpdir(), "atelier-tenants-"));
});
afterEach(async () => {
  await gateway?.stop();
  await worker.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function start(env: Record<string, string>): Promise<void> {
  gateway = await startGateway([worker.address], env);
  await gateway.until(allReady);
}

describe("a gateway without keys", () => {
  it("takes everybody on loopback for its admin, with whatever key its client sends", async () => {
    await start({});
    expect((await generate({})).status).toBe(200);
    expect((await generate({ authorization: "Bearer sk-none" })).status).toBe(200);
    expect((await ask("GET", "/v1/admin/keys", {})).status).toBe(200);
  });

  it("lets nobody administer by another name than this machine's, as a web page does whose name leads here", async () => {
    await start({});
    const ask = (host: string) => gateway.app.inject({ url: "/v1/admin/keys", headers: { host } });
    for (const host of ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "localhost"]) {
      expect((await ask(host)).statusCode, host).toBe(200);
    }
    for (const host of ["shop.example:8080", "127.0.0.1.shop.example", "localhost.shop.example:80"]) {
      expect((await ask(host)).statusCode, host).toBe(403);
    }
  });

  it.each(["0.0.0.0:0", "[::]:0", "10.1.2.3:80", "atelier.example:80"])("does not start on %s", async (listen) => {
    const starting = startGateway([worker.address], { ATELIER_LISTEN: listen });
    await expect(starting).rejects.toThrow(
      /ATELIER_LISTEN names[\s\S]*ATELIER_KEYS_FILE[\s\S]*ATELIER_ANONYMOUS=allow/,
    );
    await start({});
  });

  it("does not start with its gRPC API open to others either", async () => {
    const starting = startGateway([worker.address], { ATELIER_GRPC_LISTEN: "0.0.0.0:0" });
    await expect(starting).rejects.toThrow(/ATELIER_GRPC_LISTEN names 0\.0\.0\.0/);
    await start({});
  });

  it("starts anywhere where it is told that a proxy asks, and lets nobody administer", async () => {
    await start({ ATELIER_LISTEN: "0.0.0.0:0", ATELIER_ANONYMOUS: "allow" });
    expect((await generate({})).status).toBe(200);
    expect((await ask("GET", "/v1/admin/keys", {})).status).toBe(403);
  });

  it("asks for keys from the first one on, which must be an admin's, and goes on to do so", async () => {
    await start({});
    const early = await create({}, { name: "shop" });
    expect([early.status, early.body.error.field]).toEqual([409, "role"]);
    const admin = await create({}, { name: "ops", role: "admin" });
    expect(admin.status).toBe(201);
    expect((await generate({})).status).toBe(401);
    const other = await create(bearer({ text: admin.body.key }), { name: "ops 2", role: "admin" });
    const last = { authorization: `Bearer ${other.body.key}` };
    expect((await ask("DELETE", `/v1/admin/keys/${admin.body.id}`, last)).status).toBe(204);
    const refused = await ask("DELETE", `/v1/admin/keys/${other.body.id}`, last);
    expect([refused.status, refused.body.error.code]).toEqual([409, "CONFLICT"]);
    expect((await generate({})).status).toBe(401);
  });
});

describe("keys in requests", () => {
  const user = testKey({ tenant: "shop" });
  it.each([
    ["a bearer token", { authorization: `Bearer ${user.text}` }],
    ["a bearer token, however the scheme is spelt", { authorization: `bearer  ${user.text}` }],
    ["x-api-key", { "x-api-key": user.text }],
    ["HTTP's basic authentication, as its password", { authorization: `Basic ${btoa(`anybody:${user.text}`)}` }],
    ["two headers that agree", { "x-api-key": user.text, authorization: `Bearer ${user.text}` }],
  ])("are taken from %s", async (_where, headers) => {
    await start({ ATELIER_KEYS: keysJson([user]) });
    expect((await generate(headers)).status).toBe(200);
    expect(worker.requests.at(-1)!.order!.tenant).toBe("shop");
  });

  const expired = testKey({ expires_at: "2020-01-01T00:00:00Z" });
  const stranger = testKey();
  const shorter = { text: user.text.slice(0, -1) };
  it.each([
    ["none", {}, /there is no key/],
    ["an empty one", { "x-api-key": "" }, /there is no key/],
    ["one that nobody made", bearer(stranger), /unknown or was revoked/],
    ["a known id with another secret", bearer({ text: stranger.text.replace(stranger.id, user.id) }), /unknown or was/],
    ["one that is cut short", bearer(shorter), /not a key of this service/],
    ["one of another service", { authorization: "Bearer sk-abcdef" }, /not a key of this service/],
    ["one that has expired", bearer(expired), /atk_\w+ has expired/],
    ["a scheme that is not read", { authorization: `Digest ${user.text}` }, /authorization header is not readable/],
    ["a bearer of nothing", { authorization: "Bearer" }, /authorization header is not readable/],
    ["basic authentication without a colon", { authorization: `Basic ${btoa(user.text)}` }, /not readable/],
    ["two that differ", { "x-api-key": expired.text, ...bearer(user) }, /different keys; send one/],
  ])("refuses %s with 401", async (_what, headers, message) => {
    await start({ ATELIER_KEYS: keysJson([user, expired]) });
    const refused = await generate(headers);
    expect([refused.status, refused.body.error.code]).toEqual([401, "UNAUTHENTICATED"]);
    expect(refused.body.error.message).toMatch(message);
    expect(refused.headers.get("www-authenticate")).toBe('Bearer realm="atelier"');
    expect(worker.requests).toEqual([]);
  });

  it("are good by the secret before a rotation until its grace is over", async () => {
    const before = newApiKey(user.id);
    const rotated = (until: string) => ({
      ...user,
      record: { ...user.record, previous: { hash: hashApiKey(before), until } },
    });
    const file = join(folder, "keys.json");
    writeFileSync(file, keysJson([rotated("2099-01-01T00:00:00Z")]));
    await start({ ATELIER_KEYS_FILE: file });
    expect((await generate(bearer(before))).status).toBe(200);
    expect((await generate(bearer(user))).status).toBe(200);
    await gateway.stop();
    writeFileSync(file, keysJson([rotated("2020-01-01T00:00:00Z")]));
    await start({ ATELIER_KEYS_FILE: file });
    expect((await generate(bearer(before))).status).toBe(401);
    expect((await generate(bearer(user))).status).toBe(200);
  });

  it("leave public routes open", async () => {
    await start({ ATELIER_KEYS: keysJson([user]) });
    for (const path of ["/healthz", "/readyz", "/openapi.json"]) {
      expect((await ask("GET", path, {})).status).toBe(200);
    }
  });
});

describe("what a key may do", () => {
  const admin = testKey({ role: "admin", tenant: "ops" });
  const operator = testKey({ role: "operator", tenant: "ops" });
  const user = testKey({ tenant: "shop" });
  const reader = testKey({ tenant: "shop", scopes: ["usage"] });
  const keys = keysJson([admin, operator, user, reader]);

  it.each([
    ["an admin administers", admin, "GET", "/v1/admin/keys", 200],
    ["an operator does not", operator, "GET", "/v1/admin/keys", 403],
    ["a user does not", user, "GET", "/v1/admin/tenants/shop", 403],
    ["a key for usage reads it", reader, "GET", "/v1/usage", 200],
    ["and no models", reader, "GET", "/v1/models", 403],
    ["and makes no pictures", reader, "POST", "/generate", 403],
    ["an unknown route is 404 for whoever has a key", user, "GET", "/v1/nothing", 404],
  ] as const)("%s", async (_what, key, method, path, status) => {
    await start({ ATELIER_KEYS: keys });
    const body = method === "POST" ? { prompt: "x" } : undefined;
    expect((await ask(method, path, bearer(key), body)).status).toBe(status);
  });

  it("is limited to its lists of models, which are those of its tenant too, and others are not there for it", async () => {
    const tiny = testKey({ tenant: "shop", models: ["atelier-tiny", "not-served"] });
    const nothing = testKey({ tenant: "closed" });
    const absent = testKey({ tenant: "absent" });
    const tenants = [
      { id: "shop", models: ["atelier-tiny", "secret-model"] },
      { id: "absent", models: ["not-served"] },
      { id: "closed", models: [] },
    ];
    await start({ ATELIER_KEYS: keysJson([tiny, nothing, absent], tenants) });
    const { body } = await ask("GET", "/v1/models", bearer(tiny));
    expect(body.models.map(({ id }: { id: string }) => id)).toEqual(["atelier-tiny"]);
    // secret-model comes first in the fleet; the default is the first that this key may use.
    expect((await generate(bearer(tiny))).body.model).toBe("atelier-tiny");

    for (const model of ["secret-model", "no-such-model"]) {
      const refused = await generate(bearer(tiny), { model });
      expect([refused.status, refused.body.error.field]).toEqual([403, "model"]);
      expect(refused.body.error.message).toBe(
        `model names "${model}", which this key may not use; it may use atelier-tiny`,
      );
    }
    const { status, body: other } = await generate(bearer(absent), { model: "not-served" });
    expect(status).not.toBe(200);
    expect(other.error.message).not.toMatch(/secret-model|atelier-tiny/);
    expect((await generate(bearer(nothing))).status).toBe(403);
  });
});

describe("the keys file", () => {
  const first = testKey({ role: "admin" });
  const second = testKey();
  const path = () => join(folder, "keys.json");

  it("is read again when it changes, as a mounted secret does, and a revoked key's stream ends", async () => {
    writeFileSync(path(), keysJson([first, second]));
    await start({ ATELIER_KEYS_FILE: path() });
    worker.next({ kind: "hang" });
    const streaming = await fetch(`${gateway.url}/generate`, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "text/event-stream", ...bearer(second) },
      body: JSON.stringify({ prompt: "x" }),
    });
    writeFileSync(join(folder, "new"), keysJson([first]));
    renameSync(join(folder, "new"), path());
    const text = await streaming.text();
    expect(text).toMatch(/event: error\ndata: .*"UNAUTHENTICATED".*was revoked while the request ran/);
    expect((await generate(bearer(second))).status).toBe(401);
    expect((await generate(bearer(first))).status).toBe(200);
    expect(worker.cancelled).toHaveLength(1);
  });

  it("stays in force as it was where it cannot be read again", async () => {
    writeFileSync(path(), keysJson([first]));
    await start({ ATELIER_KEYS_FILE: path() });
    writeFileSync(path(), '{"keys": [');
    await new Promise((resolve) => setTimeout(resolve, 3_500));
    expect((await generate(bearer(first))).status).toBe(200);
    expect((await generate({})).status).toBe(401);
  });

  it.each([
    ["is not there", undefined, /ATELIER_KEYS_FILE cannot be read: ENOENT/],
    ["is no JSON", "keys: []", /does not hold keys: it is not JSON/],
    ["has a key without a hash", '[{"id":"abcdefabcdef","name":"x"}]', /keys\.0\.hash/],
    [
      "has a secret where the hash belongs",
      `[{"id":"abcdefabcdef","name":"x","hash":"${first.text}"}]`,
      /keys\.0\.hash/,
    ],
    ["has a field that there is not", '{"key":[]}', /unknown field key/],
    ["has one key twice", keysJson([first, first]), /keys has ".*" twice/],
    ["has a limit of nothing", '{"tenants":[{"id":"a","requests_per_minute":0}]}', /tenants\.0\.requests_per_minute/],
    ["has a tenant with a path for a name", '{"tenants":[{"id":"../a"}]}', /tenants\.0\.id/],
  ])("stops the start where it %s, and tells no secret", async (_what, text, message) => {
    if (text !== undefined) writeFileSync(path(), text);
    const failure = await startGateway([worker.address], { ATELIER_KEYS_FILE: path() }).then(
      async (started) => {
        await started.stop();
        throw new Error("it started");
      },
      (error: Error) => error,
    );
    expect(failure.message).toMatch(message);
    expect(failure.message).not.toContain(first.text);
    await start({});
  });
});

interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for.
  readonly body: any;
}

async function ask(method: string, path: string, headers: Record<string, string>, body?: unknown): Promise<Answer> {
  const response = await fetch(gateway.url + path, {
    method,
    headers: { ...headers, ...(body !== undefined && { "content-type": "application/json" }) },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text === "" ? undefined : JSON.parse(text) };
}

const generate = (headers: Record<string, string>, body: object = {}) =>
  ask("POST", "/generate", headers, { prompt: "x", ...body });
const create = (headers: Record<string, string>, body: object) => ask("POST", "/v1/admin/keys", headers, body);
