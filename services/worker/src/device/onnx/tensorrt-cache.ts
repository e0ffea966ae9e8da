import { mkdir, readdir } from "node:fs/promises";
import { ConfigError } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";

/**
 * Asks TensorRT to keep its engines in this folder: building one takes minutes, for each network and shape.
 *
 * onnxruntime-node gives the provider no options but the GPU's number, so the only way is by onnxruntime's environment
 * variables. Before the first session, and in the main thread: another thread's variables are not the process's.
 *
 * @throws ConfigError where the folder cannot be made.
 */
export async function useTensorrtCache(dir: string): Promise<void> {
  try {
    await mkdir(dir, { recursive: true });
  } catch (cause) {
    throw new ConfigError(`ATELIER_TENSORRT_CACHE_DIR=${dir}: ${(cause as Error).message}`);
  }
  process.env["ORT_TENSORRT_ENGINE_CACHE_ENABLE"] = "1";
  process.env["ORT_TENSORRT_CACHE_PATH"] = dir;
}

/** Whether onnxruntime did as asked shows only when engines have been built: after the warm-up. */
export async function checkTensorrtCache(dir: string, logger: Logger): Promise<void> {
  const engines = (await readdir(dir)).filter((name) => name.endsWith(".engine"));
  if (engines.length > 0) logger.info({ dir, engines: engines.length }, "TensorRT keeps its engines");
  else
    logger.warn({ dir }, "TensorRT has kept no engine in ATELIER_TENSORRT_CACHE_DIR: the next start builds all again");
}
