import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { openReceivers, type ReceiverOptions } from "./call-receiver.ts";

describe("a call to a receiver", () => {
  it("counts with 2xx only, and keeps how the answer began", async () => {
    const { url } = await receiver((_request, reply) => reply.writeHead(201).end("thanks\u0007"));
    expect(await call(url)).toEqual({
      outcome: { kind: "delivered" },
      status: 201,
      error: null,
      excerpt: "thanks\ufffd",
    });
  });

  it("fails with what the receiver answered, and when it wants to be called again", async () => {
    const { url } = await receiver((_request, reply) => reply.writeHead(503, { "retry-after": "7" }).end("busy"));
    const error = "it answered 503";
    expect(await call(url)).toEqual({
      outcome: { kind: "failed", retryAfterMs: 7_000 },
      status: 503,
      error,
      excerpt: "busy",
    });
  });

  it("does not follow redirects", async () => {
    const other = await receiver((_request, reply) => reply.end());
    const { url } = await receiver((_request, reply) => reply.writeHead(307, { location: other.url }).end());
    expect(await call(url)).toMatchObject({
      outcome: { kind: "failed" },
      status: 307,
      error: "redirects are not followed",
    });
    expect(other.calls()).toBe(0);
  });

  it("reads 1 KiB of an answer that has no end", async () => {
    const { url, closed } = await receiver((_request, reply) => {
      const more = () => reply.write("x".repeat(64 * 1024), () => reply.destroyed || setImmediate(more));
      more();
    });
    expect((await call(url)).excerpt).toBe("x".repeat(1_024));
    await closed;
  });

  it("gives up on a receiver that answers too slowly", async () => {
    const { url } = await receiver(() => {});
    expect(await call(url, { timeoutMs: 50 })).toMatchObject({
      status: null,
      error: "it did not answer within 0.05 s",
    });
  });

  it("says that nobody listens", async () => {
    const { url, server } = await receiver(() => {});
    await new Promise((resolve) => server.close(resolve));
    expect((await call(url)).error).toContain("ECONNREFUSED");
  });
});

describe("a call where only public addresses may be called", () => {
  it("opens no connection to an address of this network that stands in the URL", async () => {
    const { url, connections } = await receiver((_request, reply) => reply.end());
    const result = await call(url, { privateAllowed: false });
    expect(result.error).toBe("127.0.0.1 is not public (loopback); only public addresses are called");
    expect(connections()).toBe(0);
  });

  it("opens none to a name that resolves to one, even if to a public one besides", async () => {
    const { url, connections } = await receiver((_request, reply) => reply.end());
    const named = url.replace("127.0.0.1", "hooks.example");
    const result = await call(named, { privateAllowed: false, resolve: answering(["93.184.215.14", "127.0.0.1"]) });
    expect(result.error).toContain("hooks.example is 127.0.0.1, which is not public (loopback)");
    expect(connections()).toBe(0);
  });

  it("connects to the address that was checked, so that a name server which changes its answer gains nothing", async () => {
    const { url, calls, connections } = await receiver((_request, reply) => reply.end());
    const named = url.replace("127.0.0.1", "rebinds.example");
    const answers = [["127.0.0.1"], ["127.0.0.2"]];
    let asked = 0;
    const options: Partial<ReceiverOptions> = {
      privateAllowed: false,
      resolve: (name, done) => answering(answers[asked++]!)(name, done),
      whyRefused: (address) => (address === "127.0.0.2" ? "is not public" : undefined),
    };
    expect((await call(named, options)).outcome).toEqual({ kind: "delivered" });
    expect([asked, calls()]).toEqual([1, 1]);
    expect((await call(named, options)).error).toContain("rebinds.example is 127.0.0.2, which is not public");
    expect([asked, connections()]).toEqual([2, 1]);
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

let servers: Server[] = [];

afterEach(() => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
  servers = [];
});

async function receiver(answer: Parameters<typeof createServer>[1] & object) {
  let calls = 0;
  let connections = 0;
  const gone = Promise.withResolvers<void>();
  const server = createServer((request, reply) => {
    calls++;
    answer(request, reply);
  });
  server.on("connection", (socket) => {
    connections++;
    socket.once("close", () => gone.resolve());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  servers.push(server);
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`;
  return { url, server, closed: gone.promise, calls: () => calls, connections: () => connections };
}

async function call(url: string, options: Partial<ReceiverOptions> = {}) {
  const receivers = openReceivers({ privateAllowed: true, ...options });
  try {
    return await receivers.call({ url, headers: {}, body: "{}" });
  } finally {
    await receivers.close();
  }
}

function answering(addresses: readonly string[]): NonNullable<ReceiverOptions["resolve"]> {
  return (_name, done) =>
    setImmediate(() =>
      done(
        null,
        addresses.map((address) => ({ address, family: 4 })),
      ),
    );
}
