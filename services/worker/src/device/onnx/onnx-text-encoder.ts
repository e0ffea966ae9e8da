import { invariant } from "@atelier/core";
import type { TextEncoder, TokenIds } from "../../stages/text-encode.ts";
import type { Releasable } from "../device.ts";
import type { NetworkSession } from "./network-session.ts";
import { FLOATS, INTEGERS, type TensorPort, tensorPort } from "./tensor-port.ts";

const OUTPUT = "last_hidden_state";

/** A CLIP text encoder: `input_ids` [rows, length] to `last_hidden_state` [rows, length, width]. */
export class OnnxTextEncoder implements TextEncoder, Releasable {
  readonly #session: NetworkSession;
  readonly #ids: TensorPort<"int64" | "int32">;

  /** @throws ServingError INVALID_BUNDLE naming the file when the graph is no such encoder. */
  constructor(session: NetworkSession) {
    const { path } = session;
    this.#session = session;
    this.#ids = tensorPort(session.inputs, { name: "input_ids", types: INTEGERS, path });
    tensorPort(session.outputs, { name: OUTPUT, types: FLOATS, path });
  }

  async encode(rows: readonly TokenIds[]): Promise<readonly Float32Array[]> {
    const length = rows[0]!.length;
    const { name, type } = this.#ids;
    const binding = this.#session.binding({ [name]: { type, dims: [rows.length, length] } }, [OUTPUT]);
    rows.forEach((row, i) => {
      invariant(row.length === length, "all chunks have one length");
      if (type === "int32") (binding.feeds[name] as Int32Array).set(row, i * length);
      else (binding.feeds[name] as BigInt64Array).set(BigInt64Array.from(row, BigInt), i * length);
    });
    await this.#session.run(binding);
    const { values } = binding.outputs[OUTPUT]!;
    const size = values.length / rows.length;
    return rows.map((_, i) => values.subarray(i * size, (i + 1) * size));
  }

  get weightsBytes(): number {
    return this.#session.weightsBytes;
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
