import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { ConfigError, ServingError } from "@atelier/core";
import { afterEach, describe, expect, it } from "vitest";
import { currentSpan, currentTraceId, inScope, inSpan, NO_SPAN, startSpan, startTracing, traced } from "./index.ts";
import { currentLogFields } from "./scope.ts";

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const parent = (flags: "00" | "01") => ({ traceparent: `00-${TRACE}-b7ad6b7169203331-${flags}` });

describe("tracing that is off", () => {
  it.each([
    ["no endpoint is named", {}],
    ["the SDK is disabled", { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:4318", OTEL_SDK_DISABLED: "true" }],
  ])("has one span that does nothing, when %s", async (_when, env) => {
    const tracing = await startTracing({ service: "gateway", env });
    expect(tracing.on).toBe(false);
    const span = startSpan("request", {}, parent("01"));
    expect(span).toBe(NO_SPAN);
    expect(span.child("part")).toBe(NO_SPAN);
    inSpan(span, () => expect([currentSpan(), currentTraceId()]).toEqual([NO_SPAN, undefined]));
    expect(traced("part", (part) => part)).toBe(NO_SPAN);
  });
});

describe("tracing that is on", () => {
  it("sends a request's spans as one tree, with what they say of themselves", async () => {
    const { env, spans } = await receiver();
    const tracing = await startTracing({ service: "gateway", env, version: "1.2.3" });
    const request = startSpan("request", {
      kind: "server",
      attributes: { "http.route": "/generate", absent: undefined },
    });
    await inSpan(request, async () => {
      expect(currentTraceId()).toBe(request.traceId);
      await traced("place", (span) => span.event("chosen", { worker: "w1" }, 1_700_000_000_000));
      await expect(
        traced("dispatch", () => Promise.reject(new ServingError("WORKER_LOST", "of a cat"))),
      ).rejects.toThrow();
    });
    request.end();
    await tracing.close({ timeoutMs: 5_000 });

    const sent = spans();
    const named = (name: string) => sent.find((span) => span.name === name);
    expect(sent.map(({ name }) => name).sort()).toEqual(["dispatch", "place", "request"]);
    expect(new Set(sent.map(({ traceId }) => traceId))).toEqual(new Set([request.traceId]));
    expect(named("place")?.parentSpanId).toBe(named("request")?.spanId);
    expect(named("request")).toMatchObject({ kind: 2, attributes: [{ key: "http.route" }] });
    expect(named("place")?.events).toMatchObject([{ name: "chosen", timeUnixNano: "1700000000000000000" }]);
    expect(named("dispatch")).toMatchObject({ status: { code: 2 } });
    expect(JSON.stringify(sent)).toContain("WORKER_LOST");
    expect(JSON.stringify(sent)).not.toContain("of a cat"); // a message may hold what a caller wrote
    expect(currentTraceId()).toBeUndefined(); // it is off again
  });

  it("goes on with a caller's trace, and leaves it unrecorded where the caller does", async () => {
    const { env, spans } = await receiver();
    const tracing = await startTracing({ service: "worker", env });
    startSpan("recorded", {}, { ...parent("01"), tracestate: "vendor=1" })
      .child("part")
      .end();
    const unrecorded = startSpan("unrecorded", {}, parent("00"));
    expect([unrecorded.recording, unrecorded.traceId]).toEqual([false, undefined]);
    expect(unrecorded.child("part").context?.traceparent).toMatch(new RegExp(`^00-${TRACE}-[0-9a-f]{16}-00$`));
    startSpan("new", {}, { traceparent: "00-zz" }).end();
    await tracing.close({ timeoutMs: 5_000 });
    const traces = spans().map(({ name, traceId }) => [name, traceId === TRACE]);
    expect(traces.sort()).toEqual([
      ["new", false],
      ["part", true],
    ]);
  });

  it("passes a caller's tracestate on", async () => {
    const { env } = await receiver();
    const tracing = await startTracing({ service: "worker", env });
    const span = startSpan("request", {}, { ...parent("01"), tracestate: "vendor=1" });
    expect(span.child("part").context).toMatchObject({ tracestate: "vendor=1" });
    await tracing.close({ timeoutMs: 5_000 });
  });

  it.each([
    ["0", 0],
    ["1", 20],
  ])("records the share %s of the traces that begin here", async (share, count) => {
    const { env, spans } = await receiver();
    const sampler = { OTEL_TRACES_SAMPLER: "parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG: share };
    const tracing = await startTracing({ service: "gateway", env: { ...env, ...sampler } });
    for (let i = 0; i < 20; i++) startSpan("request").end();
    await tracing.close({ timeoutMs: 5_000 });
    expect(spans()).toHaveLength(count);
  });

  it("ends in time though nobody takes the traces", async () => {
    const { env } = await receiver(() => {}); // never answers
    const tracing = await startTracing({ service: "gateway", env });
    startSpan("request").end();
    await tracing.close({ timeoutMs: 50 }); // the test's own limit is the assertion
  });

  it("sends protocol buffers unless JSON is asked for, with the headers that are", async () => {
    const { env, requests } = await receiver();
    const own = { OTEL_EXPORTER_OTLP_PROTOCOL: undefined, OTEL_EXPORTER_OTLP_HEADERS: "x-key=a%20b" };
    const tracing = await startTracing({ service: "gateway", env: { ...env, ...own } });
    startSpan("request").end();
    await tracing.close({ timeoutMs: 5_000 });
    expect(requests[0]?.headers).toMatchObject({ "content-type": "application/x-protobuf", "x-key": "a b" });
    expect(requests[0]?.body).toContain("atelier-gateway");
  });

  it("names every bad variable at once, and no header's value", async () => {
    const env = {
      OTEL_EXPORTER_OTLP_ENDPOINT: "collector:4318",
      OTEL_TRACES_SAMPLER: "sometimes",
      OTEL_TRACES_SAMPLER_ARG: "110",
      OTEL_EXPORTER_OTLP_HEADERS: "s3cret",
    };
    const failure = await startTracing({ service: "gateway", env }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(ConfigError);
    for (const name of Object.keys(env)) expect(String(failure)).toContain(name);
    expect(String(failure)).not.toContain("s3cret");
  });
});

describe("log fields", () => {
  it("are those of the request that the code runs for, with its trace", async () => {
    const { env } = await receiver();
    const tracing = await startTracing({ service: "gateway", env });
    expect(currentLogFields()).toEqual({});
    const span = startSpan("request");
    await inScope({ fields: { request_id: "r1" }, span }, async () => {
      await Promise.resolve();
      expect(currentLogFields()).toEqual({ request_id: "r1", trace_id: span.traceId });
    });
    await tracing.close({ timeoutMs: 5_000 });
  });
});

interface SentSpan {
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly events: readonly object[];
}

/** Takes traces as JSON. */
async function receiver(answer = (end: () => void) => end()) {
  const requests: { headers: object; body: string }[] = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    requests.push({ headers: request.headers, body });
    answer(() => response.writeHead(200, { "content-type": "application/json" }).end("{}"));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  closing.push(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  const spans = (): SentSpan[] =>
    requests.flatMap(({ body }) =>
      JSON.parse(body).resourceSpans.flatMap((resource: { scopeSpans: { spans: SentSpan[] }[] }) =>
        resource.scopeSpans.flatMap((scope) => scope.spans),
      ),
    );
  const env: Record<string, string | undefined> = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
  };
  return { env, spans, requests };
}
