import { describe, expect, it } from "vitest";
import { dnsNameOf, readGatewayConfig } from "./config.ts";

const WORKERS = { ATELIER_WORKERS: "127.0.0.1:7001" };

describe("the gateway's configuration", () => {
  it("takes workers by address and by name", () => {
    const { workers } = readGatewayConfig({ ATELIER_WORKERS: "w1:7001,dns:///workers.atelier.svc:7002,[::1]:7003" });
    expect(workers.map(dnsNameOf)).toEqual([undefined, { host: "workers.atelier.svc", port: 7002 }, undefined]);
  });

  it("needs only the workers; the rest has defaults, on loopback", () => {
    expect(readGatewayConfig(WORKERS)).toMatchObject({
      listen: { host: "127.0.0.1", port: 8080 },
      grpcListen: undefined,
      workers: ["127.0.0.1:7001"],
      requestTimeoutMs: 120_000,
      drainTimeoutMs: 25_000,
      bodyMaxBytes: 16 * 1024 * 1024,
      receiveTimeoutMs: 30_000,
      tls: undefined,
      workerTls: undefined,
      corsOrigins: [],
      inFlightMax: 256,
      redis: undefined,
      generationsKeptMs: 3_600_000,
      leaseMs: 10_000,
      logLevel: "info",
      logPrompts: "never",
      tenancy: { keysFile: undefined, keys: undefined, anonymousAllowed: false },
    });
  });

  it("takes a list of workers, a port that the system chooses, and an IPv6 address", () => {
    const config = readGatewayConfig({ ATELIER_WORKERS: "w1:7001, w2:7001", ATELIER_LISTEN: "[::1]:0" });
    expect(config.workers).toEqual(["w1:7001", "w2:7001"]);
    expect(config.listen).toEqual({ host: "::1", port: 0 });
  });

  it("takes a jobs service on loopback without a token, and one elsewhere with it", () => {
    const read = (more: object) => readGatewayConfig({ ...WORKERS, ...more });
    expect(read({ ATELIER_JOBS: "http://127.0.0.1:8090/" }).jobs).toBe("http://127.0.0.1:8090");
    const token = "0123456789abcdef";
    expect(read({ ATELIER_JOBS: "https://jobs:8090", ATELIER_INTERNAL_TOKEN: token })).toMatchObject({
      jobs: "https://jobs:8090",
      internalToken: token,
    });
  });

  it("hedges not at all, by what it has learned, or at a multiple of the prediction", () => {
    const hedge = (text?: string) => readGatewayConfig({ ...WORKERS, ATELIER_HEDGE: text }).dispatch.hedge;
    expect([hedge(), hedge("off"), hedge("on"), hedge("2.5")]).toEqual(["off", "off", "learned", 2.5]);
  });

  it("never drains for longer than a request may live, unless told to, which it refuses", () => {
    expect(readGatewayConfig({ ...WORKERS, ATELIER_REQUEST_TIMEOUT_MS: "5000" }).drainTimeoutMs).toBe(5_000);
    const contradiction = { ...WORKERS, ATELIER_REQUEST_TIMEOUT_MS: "5000", ATELIER_DRAIN_TIMEOUT_MS: "6000" };
    expect(() => readGatewayConfig(contradiction)).toThrow(/ATELIER_DRAIN_TIMEOUT_MS=6000.*5000/);
  });

  it.each([
    ["no workers", {}, /ATELIER_WORKERS=\(unset\)/],
    ["a list of nothing", { ATELIER_WORKERS: " , " }, /at least one worker/],
    ["a worker without a port", { ATELIER_WORKERS: "w1" }, /"w1" is neither host:port nor dns:/],
    ["a worker on port 0", { ATELIER_WORKERS: "w1:0" }, /"w1:0" is neither host:port nor dns:/],
    ["a name of workers without a port", { ATELIER_WORKERS: "dns:///w" }, /"dns:\/\/\/w" is neither/],
    ["a name server in the name", { ATELIER_WORKERS: "dns://1.1.1.1/w:7001" }, /"dns:\/\/1.1.1.1\/w:7001" is neither/],
    ["one worker twice", { ATELIER_WORKERS: "w1:1,w1:1" }, /"w1:1" is named twice/],
    [
      "a jobs service elsewhere without a token",
      { ...WORKERS, ATELIER_JOBS: "http://jobs:8090" },
      /ATELIER_JOBS=.*TOKEN/,
    ],
    ["a path behind the jobs service", { ...WORKERS, ATELIER_JOBS: "http://[::1]:8090/api" }, /nothing after its port/],
    [
      "a short token, without telling it",
      { ...WORKERS, ATELIER_INTERNAL_TOKEN: "hunter2" },
      /ATELIER_INTERNAL_TOKEN=\*\*\*: /,
    ],
    ["a port out of range", { ...WORKERS, ATELIER_LISTEN: "127.0.0.1:65536" }, /ATELIER_LISTEN=127.0.0.1:65536/],
    [
      "gRPC on a port alone",
      { ...WORKERS, ATELIER_GRPC_LISTEN: "50050" },
      /ATELIER_GRPC_LISTEN=50050: must be host:port/,
    ],
    [
      "hedges of half the prediction",
      { ...WORKERS, ATELIER_HEDGE: "0.5" },
      /ATELIER_HEDGE=0.5: must be off, on, or how/,
    ],
    ["hedges now and then", { ...WORKERS, ATELIER_HEDGE: "sometimes" }, /ATELIER_HEDGE=sometimes: must be off, on/],
    ["more retries than requests", { ...WORKERS, ATELIER_RETRY_SHARE: "2" }, /ATELIER_RETRY_SHARE=2/],
    ["no attempt at all", { ...WORKERS, ATELIER_ATTEMPTS_MAX: "0" }, /ATELIER_ATTEMPTS_MAX=0/],
    ["a port alone", { ...WORKERS, ATELIER_LISTEN: "8080" }, /ATELIER_LISTEN=8080: must be host:port/],
    [
      "a Redis that is not a URL",
      { ...WORKERS, ATELIER_REDIS: "cache:6379" },
      /ATELIER_REDIS=cache:6379: must be redis:/,
    ],
    [
      "Redis certificates without TLS",
      { ...WORKERS, ATELIER_REDIS: "redis://a", ATELIER_REDIS_CA: "ca.pem" },
      /rediss/,
    ],
    [
      "half a pair",
      { ...WORKERS, ATELIER_REDIS: "rediss://a", ATELIER_REDIS_CERT: "c.pem" },
      /ATELIER_REDIS_KEY=.*go together/,
    ],
    [
      "a certificate without a key",
      { ...WORKERS, ATELIER_TLS_CERT: "c.pem" },
      /ATELIER_TLS_KEY=.*beside ATELIER_TLS_CERT/,
    ],
    [
      "certificates for workers without those to trust",
      { ...WORKERS, ATELIER_WORKER_CERT: "c.pem", ATELIER_WORKER_KEY: "k.pem" },
      /ATELIER_WORKER_CA=.*beside ATELIER_WORKER_CERT and ATELIER_WORKER_KEY/,
    ],
    [
      "a name for TLS without it",
      { ...WORKERS, ATELIER_WORKER_TLS_NAME: "workers" },
      /ATELIER_WORKER_TLS_NAME=workers/,
    ],
    [
      "an origin with a path",
      { ...WORKERS, ATELIER_CORS_ORIGINS: "https://a.example, https://b.example/" },
      /"https:\/\/b.example\/" is not an origin/,
    ],
    ["a level that there is not", { ...WORKERS, ATELIER_LOG_LEVEL: "loud" }, /ATELIER_LOG_LEVEL=loud.*one of trace/],
    ["no room for requests", { ...WORKERS, ATELIER_IN_FLIGHT_MAX: "0" }, /ATELIER_IN_FLIGHT_MAX=0/],
    ["a price that is no number", { ...WORKERS, ATELIER_PRICE_PER_DEVICE_HOUR: "cheap" }, /must be a number/],
    ["a price below nothing", { ...WORKERS, ATELIER_PRICE_PER_DEVICE_HOUR: "-1" }, /ATELIER_PRICE_PER_DEVICE_HOUR=-1/],
    ["a currency with a sign", { ...WORKERS, ATELIER_CURRENCY: "$" }, /ATELIER_CURRENCY=\$: must be 1 to 8 letters/],
    ["anonymous callers by any other word", { ...WORKERS, ATELIER_ANONYMOUS: "true" }, /must be allow, or unset/],
    ["no room for a prompt", { ...WORKERS, ATELIER_BODY_MAX_BYTES: "100" }, /ATELIER_BODY_MAX_BYTES=100/],
  ])("refuses %s", (_what, env, message) => {
    expect(() => readGatewayConfig(env)).toThrow(message);
  });

  it("never repeats a password in a message", () => {
    const env = { ...WORKERS, ATELIER_REDIS: "redis://user:s3cr3t@a:6379/x" };
    expect(() => readGatewayConfig(env)).toThrow(/ATELIER_REDIS=redis:\/\/\*\*\*@a:6379\/x: the database "x"/);
  });

  it("names every bad variable at once", () => {
    const env = { ATELIER_LISTEN: "x", ATELIER_IN_FLIGHT_MAX: "many" };
    expect(() => readGatewayConfig(env)).toThrow(/ATELIER_LISTEN[\s\S]*ATELIER_WORKERS[\s\S]*ATELIER_IN_FLIGHT_MAX/);
  });
});
