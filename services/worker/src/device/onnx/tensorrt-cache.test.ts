import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { checkTensorrtCache, useTensorrtCache } from "./tensorrt-cache.ts";

describe("the folder of TensorRT's engines", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-engines-"));
  });
  afterEach(async () => {
    delete process.env["ORT_TENSORRT_ENGINE_CACHE_ENABLE"];
    delete process.env["ORT_TENSORRT_CACHE_PATH"];
    await rm(folder, { recursive: true });
  });

  it("is made, and told to onnxruntime as it reads it", async () => {
    const dir = join(folder, "a/b");
    await useTensorrtCache(dir);
    expect(process.env["ORT_TENSORRT_ENGINE_CACHE_ENABLE"]).toBe("1");
    expect(process.env["ORT_TENSORRT_CACHE_PATH"]).toBe(dir);
    await checkTensorrtCache(dir, logger() as never); // it is there
  });

  it("is refused by name where it cannot be made", async () => {
    await writeFile(join(folder, "file"), "");
    await expect(useTensorrtCache(join(folder, "file/below"))).rejects.toThrow(/ATELIER_TENSORRT_CACHE_DIR=.*ENOTDIR/);
  });

  it("is looked into after the warm-up: a warning where no engine was kept", async () => {
    const log = logger();
    await checkTensorrtCache(folder, log as never);
    expect(log.warn).toHaveBeenCalledOnce();
    await writeFile(join(folder, "unet_0_sm86.engine"), "");
    await checkTensorrtCache(folder, log as never);
    expect(log.warn).toHaveBeenCalledOnce();
    expect(log.info).toHaveBeenCalledWith({ dir: folder, engines: 1 }, expect.any(String));
  });
});

function logger() {
  return { info: vi.fn(), warn: vi.fn() };
}
