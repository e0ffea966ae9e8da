import { ServingError } from "@atelier/core";
import { env, InferenceSession } from "onnxruntime-node";
import { PROVIDERS_USED } from "./session-options.ts";

export const PROVIDERS = ["cpu", "cuda", "tensorrt", "webgpu"] as const;
/** An execution provider of onnxruntime. */
export type ProviderName = (typeof PROVIDERS)[number];

// What goes wrong reaches us as an exception and is logged with its context. onnxruntime's own lines on standard error,
// coloured and with source positions, would say it again among our JSON. Read when the library first does something.
env.logLevel = "fatal";

/** y = Identity(x) on one float: the smallest graph that makes onnxruntime set a provider up. ONNX IR 8, opset 13. */
const SMALLEST_GRAPH = Buffer.from(
  "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCAhAN",
  "base64",
);

const WHAT_TO_INSTALL: Record<ProviderName, string> = {
  cpu: "reinstall onnxruntime-node",
  cuda: "install an NVIDIA driver, CUDA 13 and cuDNN 9, and put libonnxruntime_providers_shared.so and libonnxruntime_providers_cuda.so of the same onnxruntime version (the onnxruntime-gpu wheel holds them) beside onnxruntime_binding.node",
  tensorrt:
    "install an NVIDIA driver, CUDA 13, cuDNN 9 and TensorRT 10, and put libonnxruntime_providers_shared.so, libonnxruntime_providers_cuda.so and libonnxruntime_providers_tensorrt.so of the same onnxruntime version beside onnxruntime_binding.node",
  webgpu: "install a Vulkan loader (libvulkan1) and a Vulkan driver for the GPU",
};

/**
 * Sets the provider up once, in this process, so that a missing one is found before any model is read.
 *
 * @throws ServingError DEVICE_UNAVAILABLE naming the provider, what it lacks and what to do.
 */
export async function probeProvider(provider: ProviderName): Promise<void> {
  try {
    const session = await InferenceSession.create(SMALLEST_GRAPH, {
      executionProviders: [...PROVIDERS_USED[provider]],
      logSeverityLevel: 4,
    });
    await session.release();
  } catch (cause) {
    throw providerUnavailable(provider, cause);
  }
}

export function providerUnavailable(provider: ProviderName, cause: unknown): ServingError {
  const reason = cause instanceof Error ? firstLine(cause.message) : String(cause);
  const remedy = `To use it, ${WHAT_TO_INSTALL[provider]}; or set ATELIER_DEVICE=cpu, or ATELIER_DEVICE_FALLBACK=cpu.`;
  const message = `the execution provider "${provider}" is not available here: ${reason}. ${remedy}`;
  return new ServingError("DEVICE_UNAVAILABLE", message, { cause });
}

/** onnxruntime puts source positions and stacks before and behind what it has to say. */
function firstLine(message: string): string {
  const line = message.split("\n")[0] ?? message;
  return line.length > 300 ? `...${line.slice(-300)}` : line;
}
