import type { InferenceSession } from "onnxruntime-node";
import type { FloatType } from "./float-input.ts";
import { invalidGraph } from "./session.ts";

/** One tensor that a graph takes or gives. */
export interface TensorPort {
  readonly name: string;
  readonly type: string;
  /** A string where the size is open. */
  readonly shape: readonly (number | string)[];
}

/** @throws ServingError INVALID_BUNDLE when there is no such tensor. */
export function tensorPort(
  metadata: readonly InferenceSession.ValueMetadata[],
  name: string | undefined,
  path: string,
): TensorPort {
  const found = metadata.find((value) => value.name === name);
  if (found?.isTensor) return found;
  throw invalidGraph(path, `has no tensor "${name}"; it has ${metadata.map((value) => value.name).join(", ")}`);
}

/** @throws ServingError INVALID_BUNDLE when the tensor is not of floats. */
export function floatType(port: TensorPort, path: string): FloatType {
  if (port.type === "float32" || port.type === "float16") return port.type;
  throw invalidGraph(path, `"${port.name}" is of ${port.type}; float32 or float16 is needed`);
}
