import type { EncodedPicture, EncodeWork, VaeEncoder } from "../../stages/image-encode.ts";
import type { Releasable } from "../device.ts";
import type { NetworkSession } from "./network-session.ts";
import { FLOATS, type FloatType, type TensorPort, tensorPort } from "./tensor-port.ts";

const INPUT = "sample";

/** A VAE encoder: `sample` [1, 3, H, W], one output [1, channels, h, w]. */
export class OnnxVaeEncoder implements VaeEncoder, Releasable {
  readonly #session: NetworkSession;
  readonly #input: TensorPort<FloatType>;
  readonly #output: string;

  /** @throws ServingError INVALID_BUNDLE naming the file when the graph is no such encoder. */
  constructor(session: NetworkSession) {
    const { path, inputs, outputs } = session;
    this.#session = session;
    this.#input = tensorPort(inputs, { name: INPUT, types: FLOATS, path });
    this.#output = tensorPort(outputs, { name: outputs[0]?.name, types: FLOATS, path }).name;
  }

  async encode({ pixels, width, height }: Omit<EncodeWork, "model">): Promise<EncodedPicture> {
    const feeds = { [INPUT]: { type: this.#input.type, dims: [1, 3, height, width] } };
    const binding = this.#session.binding(feeds, [this.#output]);
    (binding.feeds[INPUT] as Float32Array).set(pixels);
    await this.#session.run(binding);
    const { dims, values } = binding.outputs[this.#output]!;
    return { values, channels: dims[1]!, height: dims[2]!, width: dims[3]! };
  }

  get weightsBytes(): number {
    return this.#session.weightsBytes;
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
