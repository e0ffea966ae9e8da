import type { LatentShape } from "@atelier/diffusion";
import type { InferenceSession, Tensor } from "onnxruntime-node";
import type { DecodedPixels, VaeDecoder } from "../../stages/image-decode.ts";
import type { Releasable } from "../device.ts";
import { asFloat32, type FloatType, floatInput } from "./float-input.ts";
import { runSession } from "./session.ts";
import { floatType, tensorPort } from "./tensor-port.ts";

/** A VAE decoder: one input [1, channels, h, w], one output [1, 3, H, W]. */
export class OnnxVaeDecoder implements VaeDecoder, Releasable {
  readonly #session: InferenceSession;
  readonly #inputType: FloatType;
  readonly #outputName: string;

  /** @throws ServingError INVALID_BUNDLE naming `path` when the graph is no such decoder. */
  constructor(session: InferenceSession, path: string) {
    this.#session = session;
    this.#inputType = floatType(tensorPort(session.inputMetadata, "latent_sample", path), path);
    this.#outputName = tensorPort(session.outputMetadata, session.outputNames[0], path).name;
  }

  async decode({ latent, shape }: { latent: Float32Array; shape: LatentShape }): Promise<DecodedPixels> {
    const input = floatInput(this.#inputType, [1, shape.channels, shape.height, shape.width]);
    input.values.set(latent);
    const results = await runSession(this.#session, { latent_sample: input.tensor });
    const output = results[this.#outputName] as Tensor;
    const [, , height, width] = output.dims as [number, number, number, number];
    return { pixels: asFloat32(output), width, height };
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
