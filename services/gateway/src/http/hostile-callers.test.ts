import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

let worker: FakeWorker;
let gateway: TestGateway;
let sockets: Socket[] = [];

beforeEach(async () => {
  worker = await FakeWorker.start();
});

afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  sockets = [];
  await gateway?.stop();
  await worker.stop();
});

describe("callers that send slowly", () => {
  it.each([
    ["their headers, a byte at a time", "POST /generate HTTP/1.1\r\nhost: x\r\nx-slow: ", "a"],
    ["their body, a byte at a time", `${head(10_000)}{"prompt":"`, "a"],
    ["nothing at all after the first line", "POST /generate HTTP/1.1\r\n", ""],
  ])("%s are cut off in time, and hold up nobody meanwhile", async (_what, start, drop) => {
    await open({ ATELIER_RECEIVE_TIMEOUT_MS: "600" });
    const slow = Array.from({ length: 50 }, () => dribble(start, drop));
    expect((await picture("a mug")).status).toBe(200);
    for (const answer of await Promise.all(slow)) expect(answer).toMatch(/^HTTP\/1\.1 408 Request Timeout\r\n/);
    expect((await picture("a mug")).status).toBe(200);
    expect(gateway.inFlight.count).toBe(0);
  });

  it("are not counted against a caller that only waits long for its picture", async () => {
    await open({ ATELIER_RECEIVE_TIMEOUT_MS: "200" });
    let finish = () => {};
    const after = new Promise<void>((resolve) => {
      finish = resolve;
    });
    worker.next({ kind: "answer", after });
    const waiting = picture("a mug");
    await sleep(900);
    finish();
    expect((await waiting).status).toBe(200);
  });
});

describe("callers that never take their answer", () => {
  it("are let go with it", async () => {
    await open({ ATELIER_RECEIVE_TIMEOUT_MS: "300", ATELIER_REQUEST_TIMEOUT_MS: "2000" });
    worker.usually = { kind: "answer", data: new Uint8Array(3_000_000) };
    const connections = () =>
      new Promise<number>((resolve) => gateway.app.server.getConnections((_error, count) => resolve(count)));
    const greedy = Array.from({ length: 2 }, () => opened().pause());
    for (const [i, socket] of greedy.entries()) {
      const body = JSON.stringify({ prompt: `mug ${i}`, num_images: 4 });
      socket.write(head(Buffer.byteLength(body)) + body);
    }
    while ((await connections()) < 2) await sleep(10);
    while (worker.requests.length < 2) await sleep(10);
    while ((await connections()) > 0) await sleep(10);
    expect(gateway.inFlight.count).toBe(0);
    expect((await picture("a mug")).status).toBe(200);
  });
});

describe("callers that send too much", () => {
  it("in a body are told the limit, whether they say its length or not", async () => {
    await open({ ATELIER_BODY_MAX_BYTES: String(128 * 1024) });
    const told = await exchange(head(1_000_000));
    expect(told).toMatch(/^HTTP\/1\.1 413 /);
    expect(told).toContain("PAYLOAD_TOO_LARGE");
    const chunk = "a".repeat(64 * 1024);
    const chunked =
      "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    const untold = await exchange(chunked + `${chunk.length.toString(16)}\r\n${chunk}\r\n`.repeat(4));
    expect(untold).toMatch(/^HTTP\/1\.1 413 /);
  });

  it("in headers are told so", async () => {
    await open({});
    const answer = await exchange(`GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: ${"a".repeat(20_000)}\r\n\r\n`);
    expect(answer).toMatch(/^HTTP\/1\.1 431 /);
  });

  it("as connections are closed, and those that there are go on", async () => {
    await open({ ATELIER_CONNECTIONS_MAX: "3" });
    const held = Array.from({ length: 3 }, () => opened());
    await Promise.all(held.map((socket) => new Promise((resolve) => socket.once("connect", resolve))));
    expect(await exchange("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")).toBe("");
    const answer = new Promise((resolve) => held[0]!.once("data", (data) => resolve(String(data))));
    held[0]!.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    expect(await answer).toMatch(/^HTTP\/1\.1 200 /);
  });
});

describe("what a caller writes", () => {
  const BREAKS = "a mug\r\nset-cookie: stolen=1\r\n\r\n<script>alert(1)</script>";

  it.each([
    ["a prompt", { prompt: BREAKS }],
    ["a negative prompt", { prompt: "a mug", negative_prompt: BREAKS }],
    ["a prompt of other scripts and signs", { prompt: "杯子 🍵 \u2028 \"'; filename=x.html" }],
  ])("as %s stays out of the headers, beside a picture too", async (_what, body) => {
    await open({});
    for (const path of ["/generate", "/v1/generations", "/sdapi/v1/txt2img"]) {
      for (const accept of ["image/png", "application/json", "text/event-stream"]) {
        const answer = await post(path, body, { accept });
        await answer.arrayBuffer();
        expect(answer.status).toBe(200);
        expect(answer.headers.get("set-cookie")).toBeNull();
        expect(answer.headers.get("content-disposition")).toBeNull();
        const written = JSON.stringify([...answer.headers]);
        for (const part of ["stolen", "script", "filename", "杯"]) expect(written).not.toContain(part);
      }
    }
  });

  it("as a model's name that is not there comes back in the message alone", async () => {
    await open({});
    const answer = await post("/generate", { prompt: "a mug", model: BREAKS }, {});
    expect(answer.status).toBeGreaterThanOrEqual(400);
    expect(answer.status).toBeLessThan(500);
    expect(answer.headers.get("set-cookie")).toBeNull();
    expect(answer.headers.get("content-type")).toMatch(/^application\/json/);
  });

  it("as its request's id or its idempotency key is used only where it is plain", async () => {
    await open({});
    const plain = await post("/generate", { prompt: "a mug" }, { "x-request-id": "order-17" });
    expect(plain.headers.get("x-atelier-request-id")).toBe("order-17");
    const odd = await post("/generate", { prompt: "a mug" }, { "x-request-id": "<script>", "idempotency-key": "k é" });
    expect(odd.headers.get("x-atelier-request-id")).toMatch(/^req_/);
    expect(odd.status).toBeLessThan(500);
  });

  it("as a path comes back as JSON that no browser takes for a page", async () => {
    await open({});
    const answer = await fetch(`${gateway.url}/%3Cscript%3Ealert(1)%3C/script%3E%0d%0aset-cookie:%20a=1`);
    expect(answer.status).toBe(404);
    expect(answer.headers.get("set-cookie")).toBeNull();
    expect(answer.headers.get("content-type")).toMatch(/^application\/json/);
    expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
  });

  it("cannot smuggle a second request behind a length and chunks that disagree", async () => {
    await open({});
    const answer = await exchange(
      "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4\r\n" +
        "transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    );
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(answer.match(/HTTP\/1\.1/g)).toHaveLength(1);
  });
});

function head(contentLength: number): string {
  return `POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${contentLength}\r\n\r\n`;
}

async function open(env: Record<string, string>): Promise<void> {
  gateway = await startGateway([worker.address], env);
  await gateway.until(allReady);
}

function opened(): Socket {
  const socket = connect(Number(new URL(gateway.url).port), "127.0.0.1");
  socket.on("error", () => {}); // a reset is one way to be cut off
  sockets.push(socket);
  return socket;
}

/** Sends `start`, then `drop` every 50 ms, until it is cut off. Resolves to what was answered. */
function dribble(start: string, drop: string): Promise<string> {
  const socket = opened();
  socket.write(start);
  const timer = setInterval(() => drop !== "" && socket.writable && socket.write(drop), 50);
  return answerOn(socket).finally(() => clearInterval(timer));
}

function exchange(text: string): Promise<string> {
  const socket = opened();
  socket.write(text);
  return answerOn(socket);
}

function answerOn(socket: Socket): Promise<string> {
  let answer = "";
  socket.setEncoding("utf8").on("data", (text) => {
    answer += text;
  });
  return new Promise((resolve) => socket.once("close", () => resolve(answer)));
}

function picture(prompt: string): Promise<Response> {
  return post("/generate", { prompt }, {});
}

function post(path: string, body: object, headers: Record<string, string>): Promise<Response> {
  return fetch(`${gateway.url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
}
