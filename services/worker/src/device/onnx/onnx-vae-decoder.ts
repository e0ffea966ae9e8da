import type { DecodedPixels, DecodeWork, VaeDecoder } from "../../stages/image-decode.ts";
import type { Releasable } from "../device.ts";
import type { NetworkSession } from "./network-session.ts";
import { FLOATS, type FloatType, type TensorPort, tensorPort } from "./tensor-port.ts";

const INPUT = "latent_sample";

/** A VAE decoder: `latent_sample` [rows, channels, h, w], one output [rows, 3, H, W]. */
export class OnnxVaeDecoder implements VaeDecoder, Releasable {
  readonly #wide: NetworkSession;
  readonly #openNarrow: (() => Promise<NetworkSession>) | undefined;
  #narrow: NetworkSession | undefined;
  readonly #input: TensorPort<FloatType>;
  readonly #output: string;

  /**
   * `openNarrow` opens a session of one thread, at its first use; undefined on a device where it would be no other.
   *
   * @throws ServingError INVALID_BUNDLE naming the file when the graph is no such decoder.
   */
  constructor(wide: NetworkSession, openNarrow: (() => Promise<NetworkSession>) | undefined) {
    const { path, inputs, outputs } = wide;
    this.#wide = wide;
    this.#openNarrow = openNarrow;
    this.#input = tensorPort(inputs, { name: INPUT, types: FLOATS, path });
    this.#output = tensorPort(outputs, { name: outputs[0]?.name, types: FLOATS, path }).name;
  }

  async decode({ latents, shape, wide }: DecodeWork): Promise<readonly DecodedPixels[]> {
    const session = await this.#session(wide);
    const dims = [latents.length, shape.channels, shape.height, shape.width];
    const binding = session.binding({ [INPUT]: { type: this.#input.type, dims } }, [this.#output]);
    const input = binding.feeds[INPUT] as Float32Array;
    latents.forEach((latent, i) => {
      input.set(latent, i * latent.length);
    });
    await session.run(binding);
    const { values, dims: outputDims } = binding.outputs[this.#output]!;
    const [, , height, width] = outputDims as [number, number, number, number];
    const size = values.length / latents.length;
    return latents.map((_, i) => ({ pixels: values.subarray(i * size, (i + 1) * size), width, height }));
  }

  async #session(wide: boolean): Promise<NetworkSession> {
    if (wide || this.#openNarrow === undefined) return this.#wide;
    this.#narrow ??= await this.#openNarrow();
    return this.#narrow;
  }

  get weightsBytes(): number {
    return this.#wide.weightsBytes * (this.#openNarrow === undefined ? 1 : 2);
  }

  async release(): Promise<void> {
    await this.#wide.release();
    await this.#narrow?.release();
  }
}
