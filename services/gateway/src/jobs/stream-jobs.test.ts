import { once } from "node:events";
import { get, type IncomingMessage, request, type ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { FakeJobs } from "../testing/fake-jobs.ts";
import { bearer, keysJson, testKey } from "../testing/keys.ts";
import { startGateway, type TestGateway } from "../testing/start-gateway.ts";

const MIB = 1024 * 1024;
const shop = testKey({ tenant: "shop", priority: "standard", models: ["tiny"] });
const pictures = testKey({ tenant: "shop", scopes: ["generate"] });

let jobs: FakeJobs;
let gateway: TestGateway;
beforeAll(async () => {
  jobs = await FakeJobs.start();
  gateway = await startGateway([], {
    ATELIER_JOBS: jobs.url,
    ATELIER_INTERNAL_TOKEN: "between-services-of-ours",
    ATELIER_KEYS: keysJson([shop, pictures], [{ id: "shop", weight: 3 }]),
    ATELIER_RECEIVE_TIMEOUT_MS: "300",
  });
});
afterAll(async () => {
  await gateway.stop();
  await jobs.stop();
});
let ordinary: FakeJobs["answer"];
beforeEach(() => {
  ordinary = jobs.answer;
});
afterEach(() => {
  jobs.answer = ordinary;
});

describe("routes of bulk jobs", () => {
  it("go to the jobs service as they are, with who asks, and what it answers comes back", async () => {
    jobs.answer = (_request, response) => {
      response.writeHead(201, { "content-type": "application/json", location: "/v1/jobs/job_1" }).end('{"id":"job_1"}');
    };
    const answer = await ask("/v1/jobs?dry_run=true&name=a%20b", {
      method: "POST",
      headers: { "content-type": "text/csv", "idempotency-key": "k1", "x-request-id": "r-7" },
      body: "prompt\na mug\n",
    });
    expect([answer.status, answer.headers.get("location"), await answer.text()]).toEqual([
      201,
      "/v1/jobs/job_1",
      '{"id":"job_1"}',
    ]);
    expect(answer.headers.get("x-atelier-request-id")).toBe("r-7");
    const { method, url, headers } = jobs.requests.at(-1)!;
    expect([method, url]).toEqual(["POST", "/v1/jobs?dry_run=true&name=a%20b"]);
    expect(headers).toMatchObject({
      "content-type": "text/csv",
      "idempotency-key": "k1",
      "x-request-id": "r-7",
      authorization: "Bearer between-services-of-ours",
    });
    expect(jobs.caller).toEqual({
      tenant: "shop",
      keyId: shop.id,
      role: "user",
      priority: "standard",
      weight: 3,
      models: ["tiny"],
    });
  });

  it.each([
    ["GET", "/v1/jobs/job_1/items/7/image"],
    ["DELETE", "/v1/jobs/job_1"],
    ["PATCH", "/v1/jobs/job_1"],
    ["PUT", "/v1/presets/autumn"],
    ["GET", "/v1/dead-letters"],
    ["POST", "/v1/webhook-deliveries/1/redeliver"],
    ["GET", "/v1/webhook-secret"],
    ["POST", "/v1/webhook-secret/rotate"],
  ])("all do: %s %s", async (method, path) => {
    expect((await ask(path, { method })).status).toBe(200);
    expect(jobs.requests.at(-1)).toMatchObject({ method, url: path });
  });

  it("believe nobody outside who says who they are", async () => {
    const forged = Buffer.from(JSON.stringify({ tenant: "press", role: "admin" })).toString("base64url");
    await ask("/v1/jobs", { headers: { "x-atelier-caller": forged, "x-atelier-tenant": "press" } });
    expect(jobs.caller).toMatchObject({ tenant: "shop", role: "user" });
    expect(jobs.requests.at(-1)!.headers).not.toHaveProperty("x-atelier-tenant");
    expect(jobs.requests.at(-1)!.headers["authorization"]).not.toContain(shop.text);
  });

  it("ask for a key, and for one that is for jobs", async () => {
    const before = jobs.requests.length;
    expect((await fetch(`${gateway.url}/v1/jobs`)).status).toBe(401);
    const answer = await fetch(`${gateway.url}/v1/jobs`, { headers: bearer(pictures) });
    expect([answer.status, ((await answer.json()) as Failure).error.message]).toEqual([
      403,
      "this asks for a key of scope jobs; this key has generate",
    ]);
    expect(jobs.requests.length).toBe(before);
  });

  it("tell of a method that none of them has", async () => {
    const answer = await ask("/v1/jobs/job_1", { method: "OPTIONS" });
    expect(answer.status).toBe(405);
  });
});

describe("a sheet on its way to the jobs service", () => {
  it("arrives whole, though it is larger than any other body may be and takes longer", async () => {
    let bytes = 0;
    jobs.answer = async (request, response) => {
      for await (const chunk of request) bytes += chunk.length;
      response.end("ok");
    };
    const answer = await ask("/v1/jobs", { method: "POST", body: slowBody(50 * MIB), duplex: "half" });
    expect([answer.status, await answer.text(), bytes]).toEqual([200, "ok", 50 * MIB]);
  });

  it("is taken no faster than the jobs service reads it", async () => {
    const read = Promise.withResolvers<void>();
    jobs.answer = async (request, response) => {
      await read.promise;
      for await (const _chunk of request);
      response.end("ok");
    };
    let sent = 0;
    const body = Readable.from(
      (function* () {
        for (; sent < 160 * MIB; sent += MIB) yield Buffer.alloc(MIB);
      })(),
      { highWaterMark: 1 },
    );
    const answer = upload(body);
    await sleep(1_000);
    // What the kernel holds of two connections, and a chunk in each process: far from the sheet.
    expect(sent).toBeLessThan(80 * MIB);
    read.resolve();
    expect((await answer).statusCode).toBe(200);
    expect(sent).toBe(160 * MIB);
  });

  it("may be refused before it was read to its end, and its sender hears why", async () => {
    jobs.answer = (_request, response) => {
      response.writeHead(400, { "content-type": "application/json" }).flushHeaders();
      setTimeout(() => response.end(Buffer.alloc(8 * MIB)), 100);
    };
    const answer = await ask("/v1/jobs", { method: "POST", body: endless(), duplex: "half" });
    await sleep(300); // it is a while before its sender reads
    expect([answer.status, (await answer.arrayBuffer()).byteLength]).toEqual([400, 8 * MIB]);
  });

  it("ends with its sender", async () => {
    const arrived = Promise.withResolvers<IncomingMessage>();
    jobs.answer = (request) => arrived.resolve(request.resume());
    const gone = new AbortController();
    const answer = ask("/v1/jobs", { method: "POST", body: endless(), duplex: "half", signal: gone.signal });
    answer.catch(() => {}); // it is aborted
    const upstream = await arrived.promise;
    upstream.on("error", () => {});
    const closed = new Promise((resolve) => upstream.once("close", resolve));
    gone.abort();
    await closed;
    expect(upstream.complete).toBe(false);
  });
});

describe("what the jobs service sends", () => {
  it("comes as it is written: events one by one", async () => {
    const opened = Promise.withResolvers<ServerResponse>();
    jobs.answer = (_request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write("id: 1\ndata: {}\n\n");
      opened.resolve(response);
    };
    const answer = await ask("/v1/jobs/job_1/events", { headers: { "last-event-id": "0" } });
    const reader = answer.body!.getReader();
    expect(text(await reader.read())).toBe("id: 1\ndata: {}\n\n");
    const upstream = await opened.promise;
    upstream.write("id: 2\ndata: {}\n\n");
    expect(text(await reader.read())).toBe("id: 2\ndata: {}\n\n");
    expect(jobs.requests.at(-1)!.headers["last-event-id"]).toBe("0");

    const closed = once(upstream, "close");
    await reader.cancel();
    await closed; // the caller's leaving is heard there
  });

  it("is read no faster than the caller takes it", async () => {
    let sent = 0;
    jobs.answer = (_request, response) => {
      response.writeHead(200, { "content-type": "application/zip" });
      Readable.from(
        (function* () {
          for (; sent < 160 * MIB; sent += MIB) yield Buffer.alloc(MIB);
        })(),
        { highWaterMark: 1 },
      ).pipe(response);
    };
    const [answer] = (await once(
      get(`${gateway.url}/v1/jobs/job_1/archive`, { headers: bearer(shop) }),
      "response",
    )) as [IncomingMessage];
    await sleep(1_000);
    expect(sent).toBeLessThan(80 * MIB);
    let bytes = 0;
    for await (const chunk of answer) bytes += chunk.length;
    expect(bytes).toBe(160 * MIB);
  });

  it("ends well when the gateway stops, for its reader to go on elsewhere", async () => {
    jobs.answer = (_request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write("id: 1\ndata: {}\n\n");
    };
    const stopping = await startGateway([], { ATELIER_JOBS: jobs.url });
    const answer = await fetch(`${stopping.url}/v1/jobs/job_1/events`);
    const stopped = stopping.stop({ timeoutMs: 20_000 });
    expect(await answer.text()).toBe("id: 1\ndata: {}\n\n");
    await stopped;
  });

  it("ends once its reader's key is good no more", async () => {
    jobs.answer = (_request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write("id: 1\ndata: {}\n\n");
    };
    const expiring = testKey({ expires_at: new Date(Date.now() + 1_500).toISOString() });
    const brief = await startGateway([], { ATELIER_JOBS: jobs.url, ATELIER_KEYS: keysJson([expiring]) });
    const answer = await fetch(`${brief.url}/v1/jobs/job_1/events`, { headers: bearer(expiring) });
    expect(answer.status).toBe(200);
    await expect(answer.text()).rejects.toThrow();
    await brief.stop();
  });

  it("breaks off for the caller where it breaks off there", async () => {
    jobs.answer = (_request, response) => {
      response.writeHead(200, { "content-length": "1000" });
      response.write("half", () => response.destroy());
    };
    await expect(ask("/v1/jobs/job_1/manifest").then((answer) => answer.text())).rejects.toThrow();
  });
});

describe("a jobs service that is away", () => {
  it("is a 503 that says when to come back", async () => {
    const away = await startGateway([], { ATELIER_JOBS: "http://127.0.0.1:1" });
    const answer = await fetch(`${away.url}/v1/jobs`, { method: "POST", body: "x" });
    const { error } = (await answer.json()) as Failure;
    expect([answer.status, error.code, answer.headers.get("retry-after")]).toEqual([503, "STORAGE_UNAVAILABLE", "5"]);
    expect(error.message).toMatch(/^the jobs service does not answer \(.*ECONNREFUSED.*\)/);
    await away.stop();
  });

  it("is a 404 that says so where none is configured", async () => {
    const without = await startGateway([]);
    const answer = await fetch(`${without.url}/v1/jobs`);
    expect([answer.status, ((await answer.json()) as Failure).error.message]).toEqual([
      404,
      "bulk jobs are not set up here: ATELIER_JOBS names no jobs service",
    ]);
    await without.stop();
  });
});

describe("GET /openapi.json of a gateway with a jobs service", () => {
  it("has that one's public routes in it, and keeps them while it is away", async () => {
    jobs.answer = (_request, response) => {
      response.end(
        JSON.stringify({
          paths: { "/v1/jobs": { get: {} }, "/healthz": { get: { operationId: "theirs" } } },
          components: { schemas: { Job: {}, Error: "theirs" } },
        }),
      );
    };
    const read = async () => (await fetch(`${gateway.url}/openapi.json`)).json() as Promise<Document>;
    const document = await read();
    expect(document.paths["/v1/jobs"]).toEqual({ get: {} });
    expect(document.paths["/healthz"]!["get"]).toMatchObject({ operationId: "health" });
    expect(document.components.schemas).toMatchObject({ Job: {}, Error: { type: "object" } });

    jobs.answer = (_request, response) => void response.destroy();
    expect((await read()).paths).toHaveProperty("/v1/jobs");
  });
});

interface Failure {
  error: { code: string; message: string };
}

interface Document {
  paths: Record<string, Record<string, object>>;
  components: { schemas: Record<string, unknown> };
}

function ask(path: string, init: RequestInit & { duplex?: "half" } = {}): Promise<Response> {
  return fetch(`${gateway.url}${path}`, { ...init, headers: { ...bearer(shop), ...(init.headers as object) } });
}

/** As `fetch`, which reads ahead of what it has sent. */
async function upload(body: Readable): Promise<IncomingMessage> {
  const sending = request(`${gateway.url}/v1/jobs`, { method: "POST", headers: bearer(shop) });
  body.pipe(sending);
  const [answer] = (await once(sending, "response")) as [IncomingMessage];
  return answer.resume();
}

const text = ({ value }: { value?: Uint8Array | undefined }) => Buffer.from(value ?? []).toString();

/** Of `bytes`, over more than the receive timeout of an ordinary request. */
function slowBody(bytes: number): ReadableStream<Uint8Array> {
  const parts = 10;
  let part = 0;
  return new ReadableStream({
    async pull(controller) {
      if (part++ === parts) return controller.close();
      await sleep(60);
      controller.enqueue(new Uint8Array(bytes / parts));
    },
  });
}

function endless(): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      await sleep(20);
      controller.enqueue(new Uint8Array(1_000));
    },
  });
}
