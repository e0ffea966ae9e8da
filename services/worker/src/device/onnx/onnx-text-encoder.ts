import { invariant } from "@atelier/core";
import { type InferenceSession, Tensor } from "onnxruntime-node";
import type { TextEncoder, TokenIds } from "../../stages/text-encode.ts";
import type { Releasable } from "../device.ts";
import { asFloat32 } from "./float-input.ts";
import { runSession } from "./session.ts";
import { tensorPort } from "./tensor-port.ts";

/** A CLIP text encoder: `input_ids` [rows, length] to `last_hidden_state` [rows, length, width]. */
export class OnnxTextEncoder implements TextEncoder, Releasable {
  readonly #session: InferenceSession;
  readonly #idType: string;

  /** @throws ServingError INVALID_BUNDLE naming `path` when the graph is no such encoder. */
  constructor(session: InferenceSession, path: string) {
    this.#session = session;
    this.#idType = tensorPort(session.inputMetadata, "input_ids", path).type;
    tensorPort(session.outputMetadata, "last_hidden_state", path);
  }

  async encode(rows: readonly TokenIds[]): Promise<readonly Float32Array[]> {
    const length = rows[0]!.length;
    invariant(
      rows.every((row) => row.length === length),
      "all chunks have one length",
    );
    const ids = rows.flatMap((row) => Array.from(row));
    const dims = [rows.length, length];
    const input =
      this.#idType === "int64"
        ? new Tensor("int64", BigInt64Array.from(ids, BigInt), dims)
        : new Tensor("int32", Int32Array.from(ids), dims);
    const results = await runSession(this.#session, { input_ids: input });
    const values = asFloat32(results["last_hidden_state"] as Tensor);
    const size = values.length / rows.length;
    return rows.map((_, i) => values.subarray(i * size, (i + 1) * size));
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
