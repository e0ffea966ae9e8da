import { describe, expect, it } from "vitest";
import { readJobsConfig } from "./config.ts";

const REQUIRED = { ATELIER_QUEUE: "sqlite:/data/queue.db", ATELIER_OBJECTS: "file:/data/objects" };

describe("the jobs service's configuration", () => {
  it("needs a queue and a place for objects, and has a default for everything else", () => {
    expect(readJobsConfig(REQUIRED)).toEqual({
      listen: { host: "127.0.0.1", port: 8090 },
      gateways: ["http://127.0.0.1:8080"],
      internalToken: undefined,
      queue: {
        address: "sqlite:/data/queue.db",
        prefix: "ATELIER",
        replicas: 1,
        leaseMs: 30_000,
        timeoutMs: 5_000,
      },
      objects: "file:/data/objects",
      s3: { endpoint: undefined, region: "us-east-1", pathStyle: false },
      uploadBytesMax: 512 * 1024 * 1024,
      itemsMax: 1_000_000,
      keptMs: 30 * 86_400_000,
      webhookPrivate: false,
      drainTimeoutMs: 10_000,
      logLevel: "info",
      logPrompts: "never",
    });
  });

  it.each([
    ["ATELIER_QUEUE", undefined],
    ["ATELIER_QUEUE", "redis://queue:6379"],
    ["ATELIER_OBJECTS", undefined],
    ["ATELIER_OBJECTS", "ftp://objects"],
    ["ATELIER_JOBS_LISTEN", "8090"],
    ["ATELIER_JOBS_LISTEN", "127.0.0.1:99999"],
    ["ATELIER_GATEWAY", "gateway:8080"],
    ["ATELIER_GATEWAY", " "],
    ["ATELIER_INTERNAL_TOKEN", "short"],
    ["ATELIER_QUEUE_PREFIX", "two words"],
    ["ATELIER_QUEUE_REPLICAS", "0"],
    ["ATELIER_QUEUE_REPLICAS", "three"],
    ["ATELIER_QUEUE_LEASE_MS", "10"],
    ["ATELIER_QUEUE_TIMEOUT_MS", "99999999"],
    ["ATELIER_S3_ENDPOINT", "storage"],
    ["ATELIER_S3_PATH_STYLE", "perhaps"],
    ["ATELIER_JOB_UPLOAD_MAX", "much"],
    ["ATELIER_JOB_ITEMS_MAX", "1000001"],
    ["ATELIER_JOBS_KEPT_MS", "-1"],
    ["ATELIER_WEBHOOK_PRIVATE", "yes"],
    ["ATELIER_DRAIN_TIMEOUT_MS", "1.5"],
    ["ATELIER_LOG_LEVEL", "loud"],
  ])("names %s where it is %s", (name, value) => {
    expect(() => readJobsConfig({ ...REQUIRED, [name]: value })).toThrow(name);
  });

  it("names all that are bad at once", () => {
    const bad = { ATELIER_OBJECTS: "x", ATELIER_QUEUE_REPLICAS: "x", ATELIER_LOG_LEVEL: "x" };
    const read = () => readJobsConfig(bad);
    for (const name of ["ATELIER_QUEUE", ...Object.keys(bad)]) expect(read).toThrow(new RegExp(`${name}\\b`));
  });

  it("needs a token where it listens to more than this machine", () => {
    const listening = (host: string) => ({ ...REQUIRED, ATELIER_JOBS_LISTEN: `${host}:8090` });
    expect(() => readJobsConfig(listening("0.0.0.0"))).toThrow("ATELIER_INTERNAL_TOKEN");
    expect(readJobsConfig(listening("[::1]")).listen).toEqual({ host: "::1", port: 8090 });
    const token = "0123456789abcdef";
    expect(readJobsConfig({ ...listening("0.0.0.0"), ATELIER_INTERNAL_TOKEN: token }).internalToken).toBe(token);
  });
});
