import { invariant } from "@atelier/core";
import type { EncodedText, TextEncoder, TokenIds } from "../../stages/text-encode.ts";
import type { Releasable, TextEncoderFiles } from "../device.ts";
import type { NetworkSession } from "./network-session.ts";
import { FLOATS, INTEGERS, type TensorPort, tensorPort } from "./tensor-port.ts";

/**
 * A CLIP text encoder: `input_ids` [rows, length] to hidden states [rows, length, width], and to a pooled embedding
 * [rows, width] where one is asked for. Exports of SDXL's encoders give every layer: only what is read is fetched.
 */
export class OnnxTextEncoder implements TextEncoder, Releasable {
  readonly #session: NetworkSession;
  readonly #ids: TensorPort<"int64" | "int32">;
  readonly #hiddenOutput: string;
  readonly #pooledOutput: string | undefined;

  /** @throws ServingError INVALID_BUNDLE naming the file when the graph is no such encoder. */
  constructor(session: NetworkSession, { hiddenOutput, pooledOutput }: TextEncoderFiles) {
    const { path } = session;
    this.#session = session;
    this.#hiddenOutput = hiddenOutput;
    this.#pooledOutput = pooledOutput;
    this.#ids = tensorPort(session.inputs, { name: "input_ids", types: INTEGERS, path });
    for (const name of this.#outputs) tensorPort(session.outputs, { name, types: FLOATS, path });
  }

  async encode(rows: readonly TokenIds[]): Promise<readonly EncodedText[]> {
    const length = rows[0]!.length;
    const { name, type } = this.#ids;
    const binding = this.#session.binding({ [name]: { type, dims: [rows.length, length] } }, this.#outputs);
    rows.forEach((row, i) => {
      invariant(row.length === length, "all chunks have one length");
      if (type === "int32") (binding.feeds[name] as Int32Array).set(row, i * length);
      else (binding.feeds[name] as BigInt64Array).set(BigInt64Array.from(row, BigInt), i * length);
    });
    await this.#session.run(binding);

    const hidden = split(binding.outputs[this.#hiddenOutput]!.values, rows.length);
    if (this.#pooledOutput === undefined) return hidden.map((row) => ({ hidden: row }));
    const pooled = split(binding.outputs[this.#pooledOutput]!.values, rows.length);
    return hidden.map((row, i) => ({ hidden: row, pooled: pooled[i]! }));
  }

  get weightsBytes(): number {
    return this.#session.weightsBytes;
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  get #outputs(): readonly string[] {
    return this.#pooledOutput === undefined ? [this.#hiddenOutput] : [this.#hiddenOutput, this.#pooledOutput];
  }
}

function split(values: Float32Array, count: number): Float32Array[] {
  const size = values.length / count;
  return Array.from({ length: count }, (_, i) => values.subarray(i * size, (i + 1) * size));
}
