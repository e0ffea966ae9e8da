import { describe, expect, it } from "vitest";
import { addressText, readWorkerConfig } from "./config.ts";

describe("readWorkerConfig", () => {
  it("needs nothing but the models", () => {
    expect(readWorkerConfig({ ATELIER_MODELS: "deploy/models/atelier-tiny, /models/sd15" })).toMatchObject({
      listen: { host: "127.0.0.1", port: 50051 },
      bundleDirs: ["deploy/models/atelier-tiny", "/models/sd15"],
      device: { kind: "onnx", provider: "cpu" },
      fallback: "none",
      queueMax: 64,
      drainMs: 30_000,
    });
  });

  it("lets a U-Net have as many narrow lanes as threads, or fewer", () => {
    const device = (env: Record<string, string>) => readWorkerConfig({ ATELIER_MODELS: "m", ...env }).device;
    expect(device({ ATELIER_THREADS: "6" })).toMatchObject({ threads: 6, narrowLanesMax: 6 });
    expect(device({ ATELIER_THREADS: "6", ATELIER_NARROW_LANES: "0" })).toMatchObject({ narrowLanesMax: 0 });
  });

  it("simulates a GPU only where that is asked for by name", () => {
    const device = (env: Record<string, string>) => readWorkerConfig({ ATELIER_MODELS: "m", ...env }).device;
    expect(device({ ATELIER_DEVICE: "simulated", ATELIER_SIMULATED_GPU: "h100" })).toEqual({
      kind: "simulated",
      gpu: "h100",
    });
    expect(() => device({ ATELIER_DEVICE: "simulated", ATELIER_SIMULATED_GPU: "v100" })).toThrow(
      /ATELIER_SIMULATED_GPU=v100: .*a10.*rtx4090/,
    );
    expect(device({ ATELIER_DEVICE: "simulated", ATELIER_SIMULATED_SPEED: "50" })).toEqual({
      kind: "simulated",
      gpu: "a10",
      speed: 50,
    });
    expect(() => device({ ATELIER_SIMULATED_SPEED: "50" })).toThrow(/50: has no meaning with ATELIER_DEVICE=cpu/);
    expect(() => device({ ATELIER_SIMULATED_GPU: "a10" })).toThrow(/a10: has no meaning with ATELIER_DEVICE=cpu/);
  });

  it("leaves it to the device what models may take and which of them are loaded first, unless it is told", () => {
    const read = (env: Record<string, string>) => readWorkerConfig({ ATELIER_MODELS: "m", ...env });
    expect(read({})).toMatchObject({ memoryBudgetBytes: undefined, preload: undefined });
    expect(read({ ATELIER_MEMORY_BUDGET: "12GiB", ATELIER_PRELOAD: "b, a" })).toMatchObject({
      memoryBudgetBytes: 12 * 2 ** 30,
      preload: ["b", "a"],
    });
    expect(read({ ATELIER_PRELOAD: "none" }).preload).toEqual([]);
    expect(() => read({ ATELIER_MEMORY_BUDGET: "much" })).toThrow(/ATELIER_MEMORY_BUDGET=much: must be bytes/);
  });

  it("pulls items where a queue and a store are named, both or neither", () => {
    const bulk = (env: Record<string, string>) => readWorkerConfig({ ATELIER_MODELS: "m", ...env }).bulk;
    const both = { ATELIER_QUEUE: "sqlite:/var/queue.db", ATELIER_OBJECTS: "file:/var/objects" };
    expect(bulk({})).toBeUndefined();
    expect(bulk(both)).toEqual({
      queue: { address: "sqlite:/var/queue.db", prefix: "ATELIER", replicas: 1, leaseMs: 30_000, timeoutMs: 5000 },
      objects: "file:/var/objects",
      s3: { endpoint: undefined, region: "us-east-1", pathStyle: false },
      attemptsMax: 5,
    });
    const s3 = { ATELIER_S3_ENDPOINT: "https://s3:9000", ATELIER_S3_REGION: "eu", ATELIER_S3_PATH_STYLE: "true" };
    expect(bulk({ ...both, ...s3 })?.s3).toEqual({ endpoint: "https://s3:9000", region: "eu", pathStyle: true });
    expect(() => bulk({ ...both, ATELIER_S3_ENDPOINT: "s3:9000" })).toThrow(/ATELIER_S3_ENDPOINT=s3:9000: must be/);
    expect(() => bulk({ ATELIER_QUEUE: both.ATELIER_QUEUE })).toThrow(
      /ATELIER_OBJECTS must be set beside ATELIER_QUEUE/,
    );
    expect(() => bulk({ ATELIER_OBJECTS: both.ATELIER_OBJECTS })).toThrow(/ATELIER_QUEUE must be set beside/);
    expect(() => bulk({ ...both, ATELIER_QUEUE: "redis://h" })).toThrow(/ATELIER_QUEUE=redis:\/\/h: /);
    expect(() => bulk({ ...both, ATELIER_OBJECTS: "objects" })).toThrow(/ATELIER_OBJECTS=objects: /);
    expect(() => bulk({ ...both, ATELIER_QUEUE_LEASE_MS: "8000" })).toThrow(
      /ATELIER_QUEUE_TIMEOUT_MS=5000: must be at most half of ATELIER_QUEUE_LEASE_MS=8000/,
    );
  });

  it("reads addresses of either family", () => {
    const listen = (text: string) =>
      readWorkerConfig({ ATELIER_MODELS: "m", ATELIER_WORKER_LISTEN: text, ATELIER_WORKER_ID: "w" }).listen;
    expect(listen("0.0.0.0:0")).toEqual({ host: "0.0.0.0", port: 0 });
    expect(listen("[::1]:70")).toEqual({ host: "::1", port: 70 });
    expect(addressText(listen("[::1]:70"))).toBe("[::1]:70");
  });

  it("names every bad variable at once", () => {
    const read = () =>
      readWorkerConfig({
        ATELIER_WORKER_LISTEN: "50051",
        ATELIER_DEVICE: "gpu",
        ATELIER_THREADS: "0",
        ATELIER_DRAIN_MS: "soon",
      });
    for (const complaint of [
      /ATELIER_MODELS=\(unset\): must name the model bundles/,
      /ATELIER_WORKER_LISTEN=50051: must be HOST:PORT/,
      /ATELIER_DEVICE=gpu: .*cpu.*cuda.*tensorrt.*webgpu.*simulated/,
      /ATELIER_THREADS=0/,
      /ATELIER_DRAIN_MS=soon/,
    ]) {
      expect(read).toThrow(complaint);
    }
  });

  it.each(["127.0.0.1:65536", "::1:50051", "host:", ":50051", "http://host:1"])("refuses the address %s", (text) => {
    expect(() => readWorkerConfig({ ATELIER_MODELS: "m", ATELIER_WORKER_LISTEN: text })).toThrow(/HOST:PORT/);
  });
});
