import type { Logger } from "@atelier/telemetry";
import { type ProviderName, probeProvider } from "./onnx/providers.ts";

/**
 * The provider to run on: the one asked for, or the CPU where it is missing and the configuration allows that.
 *
 * @throws ServingError DEVICE_UNAVAILABLE naming the provider and what to install.
 */
export async function chooseProvider(
  { provider, fallback }: { readonly provider: ProviderName; readonly fallback: "none" | "cpu" },
  logger: Logger,
): Promise<ProviderName> {
  try {
    await probeProvider(provider);
    return provider;
  } catch (error) {
    if (fallback === "none" || provider === "cpu") throw error;
    logger.warn(
      { err: error },
      `"${provider}" is not available; running on the CPU, as ATELIER_DEVICE_FALLBACK allows`,
    );
    return "cpu";
  }
}
