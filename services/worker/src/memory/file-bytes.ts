import type { Bundle } from "../bundle/index.ts";
import { weightsBytes } from "../device/weights-bytes.ts";
import type { NetworkBytes } from "./activations.ts";

/** Bytes of a bundle's networks, borrowed ones included. */
export async function networkBytes(bundle: Bundle): Promise<NetworkBytes> {
  const { textEncoders, clipText, unetPath, vaeDecoderPath, vaeEncoderPath } = bundle;
  const text = await Promise.all(
    [...textEncoders, ...(clipText ? [clipText] : [])].map(({ path }) => weightsBytes(path)),
  );
  return {
    textEncoder: text.reduce((sum, bytes) => sum + bytes, 0),
    unet: await weightsBytes(unetPath),
    vaeDecoder: await weightsBytes(vaeDecoderPath),
    vaeEncoder: vaeEncoderPath === undefined ? 0 : await weightsBytes(vaeEncoderPath),
  };
}

export function totalBytes({ textEncoder, unet, vaeDecoder, vaeEncoder }: NetworkBytes): number {
  return textEncoder + unet + vaeDecoder + vaeEncoder;
}
