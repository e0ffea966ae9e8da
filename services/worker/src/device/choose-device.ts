import type { Logger } from "@atelier/telemetry";
import type { DeviceSpec } from "./device.ts";
import { probeProvider } from "./onnx/providers.ts";

/**
 * The device to run on: the one asked for, or the CPU where its provider is missing and the configuration allows that.
 * A simulated one is never a way out: it is what was asked for, or it is not there.
 *
 * @throws ServingError DEVICE_UNAVAILABLE naming the provider and what to install.
 */
export async function chooseDevice(
  { device, fallback }: { readonly device: DeviceSpec; readonly fallback: "none" | "cpu" },
  logger: Logger,
): Promise<DeviceSpec> {
  if (device.kind === "simulated") {
    logger.warn({ gpu: device.gpu }, "the device is simulated: no model runs, and every picture is marked");
    return device;
  }
  try {
    await probeProvider(device.provider);
    return device;
  } catch (error) {
    if (fallback === "none" || device.provider === "cpu") throw error;
    logger.warn(
      { err: error },
      `"${device.provider}" is not available; running on the CPU, as ATELIER_DEVICE_FALLBACK allows`,
    );
    return { ...device, provider: "cpu" };
  }
}
