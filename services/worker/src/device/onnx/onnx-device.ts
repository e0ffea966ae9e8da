import type { Device, OnnxDeviceSpec } from "../device.ts";
import { invalidGraph, NetworkSession } from "./network-session.ts";
import { OnnxTextEncoder } from "./onnx-text-encoder.ts";
import { OnnxUnet } from "./onnx-unet.ts";
import { OnnxUnetLanes } from "./onnx-unet-lanes.ts";
import { OnnxVaeDecoder } from "./onnx-vae-decoder.ts";
import { OnnxVaeEncoder } from "./onnx-vae-encoder.ts";

/**
 * onnxruntime, each session in a thread of its own.
 *
 * The U-Net takes nearly all of a request's time and gets every thread, in one session or in several. A text encoder
 * runs once for each prompt, and a VAE encoder once for each picture to start from: one thread is enough for them, and
 * leaves the U-Net the rest.
 */
export function openOnnxDevice({ provider, threads, narrowLanesMax = threads }: OnnxDeviceSpec): Device {
  const wide = (path: string) => NetworkSession.open(path, { provider, threads });
  const narrow = (path: string) => NetworkSession.open(path, { provider, threads: 1 });
  const unet = (path: string, lane: number) =>
    NetworkSession.open(path, { provider, threads: lane, timestepPerRow: true });
  const severalThreads = provider === "cpu" && threads > 1;
  return {
    openTextEncoder: async (files) =>
      understood(await narrow(files.path), (session) => new OnnxTextEncoder(session, files)),
    openUnet: async ({ model, unetPath }) => {
      const session = await unet(unetPath, threads);
      return new OnnxUnetLanes(await understood(session, () => new OnnxUnet(session, threads)), {
        narrowMax: severalThreads ? Math.min(threads, narrowLanesMax) : 0,
        openNarrow: async () => understood(await unet(unetPath, 1), (lane) => new OnnxUnet(lane, 1)),
        note: session.note && `${model}: unet/model.onnx runs once for each timestep in a batch: ${session.note}`,
        // A GPU's libraries choose their kernels by the size of the batch.
        comparedRows: provider === "cpu" ? [1] : [1, 4],
      });
    },
    openVaeDecoder: async ({ vaeDecoderPath }) =>
      understood(
        await wide(vaeDecoderPath),
        (session) => new OnnxVaeDecoder(session, severalThreads ? () => narrow(vaeDecoderPath) : undefined),
      ),
    openVaeEncoder: async ({ model, vaeEncoderPath }) => {
      if (vaeEncoderPath === undefined) throw invalidGraph("vae_encoder/model.onnx", `"${model}" has none`);
      return understood(await narrow(vaeEncoderPath), (session) => new OnnxVaeEncoder(session));
    },
  };
}

/** A session whose graph is not what it should be is released again, so that its thread ends. */
async function understood<Network>(
  session: NetworkSession,
  read: (session: NetworkSession) => Network,
): Promise<Network> {
  try {
    return read(session);
  } catch (error) {
    await session.release();
    throw error;
  }
}
