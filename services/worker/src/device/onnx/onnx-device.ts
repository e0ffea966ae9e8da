import type { Device, DeviceSpec } from "../device.ts";
import { OnnxTextEncoder } from "./onnx-text-encoder.ts";
import { OnnxUnet } from "./onnx-unet.ts";
import { OnnxVaeDecoder } from "./onnx-vae-decoder.ts";
import { openSession } from "./session.ts";

/**
 * onnxruntime, one session for each network.
 *
 * The U-Net takes nearly all of a request's time and gets every thread. A text encoder runs once for each prompt: one
 * thread is enough, and leaves the U-Net the rest.
 */
export function openOnnxDevice({ provider, threads }: DeviceSpec): Device {
  return {
    openTextEncoder: async ({ textEncoderPath }) =>
      new OnnxTextEncoder(await openSession(textEncoderPath, { provider, threads: 1 }), textEncoderPath),
    openUnet: async ({ unetPath }) => new OnnxUnet(await openSession(unetPath, { provider, threads }), unetPath),
    openVaeDecoder: async ({ vaeDecoderPath }) =>
      new OnnxVaeDecoder(await openSession(vaeDecoderPath, { provider, threads }), vaeDecoderPath),
  };
}
