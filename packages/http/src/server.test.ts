import { once } from "node:events";
import { type AddressInfo, connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { ServingError, systemClock } from "@atelier/core";
import { addLogFields, currentLogFields } from "@atelier/telemetry";
import Fastify, { type FastifyBaseLogger } from "fastify";
import { afterEach, describe, expect, it } from "vitest";
import { EventStream } from "./event-stream.ts";
import { buildServer, type EndedRequest, type HttpApp } from "./server.ts";

const RECEIVE_TIMEOUT_MS = 200;

let app: HttpApp;
afterEach(() => app.close());

describe("a server of ours", () => {
  it("names the request, tells what went wrong in the one form, and counts it", async () => {
    const { ended } = build();
    app.get("/broken", () => {
      throw new ServingError("NOT_FOUND", "there is none");
    });
    const url = `http://127.0.0.1:${await listening()}/broken`;
    const answer = await fetch(url, { headers: { "x-request-id": "shop-7" } });
    expect(answer.status).toBe(404);
    expect(answer.headers.get("x-atelier-request-id")).toBe("shop-7");
    expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
    expect(await answer.json()).toEqual({
      error: { code: "NOT_FOUND", message: "there is none", request_id: "shop-7" },
    });
    expect(ended).toMatchObject([{ route: "/broken", method: "GET", status: 404 }]);
  });

  it("says the request's name under both of its headers, one of its own where the caller's is not plain", async () => {
    build();
    app.get("/", async () => "x");
    const url = `http://127.0.0.1:${await listening()}/`;
    for (const given of ["a b", "x".repeat(129), 'a"b', "../../etc"]) {
      const { headers } = await fetch(url, { headers: { "x-request-id": given } });
      expect(headers.get("x-request-id")).toMatch(/^req_[\w-]{16}$/);
      expect(headers.get("x-atelier-request-id")).toBe(headers.get("x-request-id"));
    }
  });

  it("keeps to a request's scope from its headers to its handler, though its body comes by events of its own", async () => {
    build();
    app.addHook("onRequest", async () => addLogFields({ tenant: "shop" }));
    app.post("/", async () => {
      await sleep(1);
      return currentLogFields();
    });
    const url = `http://127.0.0.1:${await listening()}/`;
    const ask = async (name: string) => {
      const headers = { "content-type": "application/json", "x-request-id": name };
      const body = (async function* () {
        yield Buffer.from('{"name":');
        await sleep(20);
        yield Buffer.from('"x"}');
      })();
      return (await fetch(url, { method: "POST", headers, body: ReadableStream.from(body), duplex: "half" })).json();
    };
    const names = Array.from({ length: 8 }, (_, i) => `order-${i}`);
    expect(await Promise.all(names.map(ask))).toEqual(names.map((request_id) => ({ request_id, tenant: "shop" })));
  });

  it("ends a body that trickles in for too long, and lets an upload go on as long as it comes", async () => {
    build();
    takeBodies("/plain", false);
    takeBodies("/upload", true);
    const port = await listening();

    const [plain, upload] = await Promise.all(["/plain", "/upload"].map((path) => trickle(port, path, 8)));
    expect(plain).toMatch(/^HTTP\/1.1 408 /);
    expect(upload).toMatch(/^HTTP\/1.1 200 .*8 bytes$/s);
  });

  it("ends an upload of which nothing comes any more", async () => {
    build();
    takeBodies("/upload", true);
    const socket = connect(await listening(), "127.0.0.1");
    const answer = textOf(socket);
    socket.write("POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{");
    expect(await answer).toMatch(/^HTTP\/1.1 408 .*"the request was not sent completely in time"/s);
  });

  it("answers an upload before its end, and cuts off one that goes on", async () => {
    build();
    app.removeAllContentTypeParsers();
    app.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
    app.post("/upload", { config: { upload: true } }, async (request) => {
      await once(request.raw, "readable");
      request.raw.read(1);
      throw new ServingError("INVALID_REQUEST", "line 1");
    });
    const socket = connect(await listening(), "127.0.0.1");
    const answer = textOf(socket);
    socket.write("POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n");
    while (socket.writable) {
      socket.write(Buffer.alloc(64 * 1024));
      await sleep(20);
    }
    expect(await answer).toMatch(/^HTTP\/1.1 400 .*line 1/s);
  });

  it("does not take a body for late that it does not read itself", async () => {
    build();
    app.removeAllContentTypeParsers();
    app.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
    app.post("/upload", { config: { upload: true } }, async (request) => {
      await sleep(3 * RECEIVE_TIMEOUT_MS);
      let bytes = 0;
      for await (const chunk of request.body as AsyncIterable<Buffer>) bytes += chunk.length;
      return `${bytes} bytes`;
    });
    const body = Buffer.alloc(4 * 1024 * 1024);
    const answer = await fetch(`http://127.0.0.1:${await listening()}/upload`, { method: "POST", body });
    expect(await answer.text()).toBe(`${body.length} bytes`);
  });
});

describe("a stream of events", () => {
  it("gives an event the id that a reader resumes after", async () => {
    app = Fastify() as unknown as HttpApp;
    const events = new EventStream(systemClock, () => {});
    events.send("item", { index: 3 }, 17);
    events.end();
    expect(String(await events.readable.toArray())).toBe('id: 17\nevent: item\ndata: {"index":3}\n\n');
  });
});

function build() {
  const ended: EndedRequest[] = [];
  const log = Fastify().log as FastifyBaseLogger;
  app = buildServer({
    clock: systemClock,
    log,
    bodyMaxBytes: 1_000,
    receiveTimeoutMs: RECEIVE_TIMEOUT_MS,
    silenceMaxMs: 10_000,
    connectionsMax: 10,
    onBug: (bug) => {
      throw bug;
    },
    onEnd: (end) => ended.push(end),
  });
  return { ended };
}

function takeBodies(path: string, upload: boolean): void {
  if (!app.hasContentTypeParser("*")) {
    app.removeAllContentTypeParsers();
    app.addContentTypeParser("*", { parseAs: "buffer" }, (_request, body, done) => done(null, body));
  }
  app.post(path, { config: { upload } }, async (request) => `${(request.body as Buffer).length} bytes`);
}

async function listening(): Promise<number> {
  await app.listen({ host: "127.0.0.1", port: 0 });
  return (app.server.address() as AddressInfo).port;
}

/** Sends a byte each third of the timeout, `bytes` in all; gives what comes back. */
async function trickle(port: number, path: string, bytes: number): Promise<string> {
  const socket = connect(port, "127.0.0.1");
  const answer = textOf(socket);
  await once(socket, "connect");
  socket.write(`POST ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: ${bytes}\r\n\r\n`);
  for (let i = 0; i < bytes && socket.writable; i++) {
    await sleep(RECEIVE_TIMEOUT_MS / 3);
    if (socket.writable) socket.write("x");
  }
  return answer;
}

function textOf(socket: ReturnType<typeof connect>): Promise<string> {
  let text = "";
  socket.setEncoding("utf8").on("data", (part) => {
    text += part;
  });
  return new Promise((resolve) => {
    socket.on("error", () => {}); // a write may meet the end of the connection
    socket.on("close", () => resolve(text));
  });
}
