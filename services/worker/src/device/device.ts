import type { Unet } from "../stages/denoise.ts";
import type { VaeDecoder } from "../stages/image-decode.ts";
import type { TextEncoder } from "../stages/text-encode.ts";
import { openOnnxDevice } from "./onnx/onnx-device.ts";
import type { ProviderName } from "./onnx/providers.ts";

/** What a stage's thread is told of the device: plain data, so that it crosses threads. */
export interface DeviceSpec {
  readonly provider: ProviderName;
  /** CPU threads that one network may use; the others' share of it is the device's choice. */
  readonly threads: number;
}

/** Where a bundle's networks lie, as absolute paths. */
export interface NetworkFiles {
  readonly model: string;
  readonly textEncoderPath: string;
  readonly unetPath: string;
  readonly vaeDecoderPath: string;
}

/** Holds memory on the device until released; never while a call runs. */
export interface Releasable {
  release(): Promise<void>;
}

/**
 * Opens networks. Each stage opens its own kind, in its own thread.
 * All throw ServingError INVALID_BUNDLE naming the file, or DEVICE_UNAVAILABLE naming the provider.
 */
export interface Device {
  openTextEncoder(files: NetworkFiles): Promise<TextEncoder & Releasable>;
  openUnet(files: NetworkFiles): Promise<Unet & Releasable>;
  openVaeDecoder(files: NetworkFiles): Promise<VaeDecoder & Releasable>;
}

export function openDevice(spec: DeviceSpec): Device {
  return openOnnxDevice(spec);
}
