import type { InferenceSession } from "onnxruntime-node";
import type { TensorType } from "./network-messages.ts";
import { invalidGraph } from "./network-session.ts";

/** One tensor that a graph takes or gives. */
export interface TensorPort<Type extends TensorType = TensorType> {
  readonly name: string;
  readonly type: Type;
  /** A string where the size is open. */
  readonly shape: readonly (number | string)[];
}

export const FLOATS = ["float32", "float16"] as const;
export const INTEGERS = ["int64", "int32"] as const;
export type FloatType = (typeof FLOATS)[number];

/** @throws ServingError INVALID_BUNDLE when there is no such tensor, or it is of none of the types. */
export function tensorPort<Type extends TensorType>(
  metadata: readonly InferenceSession.ValueMetadata[],
  { name, types, path }: { readonly name: string | undefined; readonly types: readonly Type[]; readonly path: string },
): TensorPort<Type> {
  const found = metadata.find((value) => value.name === name);
  if (!found?.isTensor) {
    throw invalidGraph(path, `has no tensor "${name}"; it has ${metadata.map((value) => value.name).join(", ")}`);
  }
  const type = types.find((candidate) => candidate === found.type);
  if (type !== undefined) return { name: found.name, type, shape: found.shape };
  throw invalidGraph(path, `"${name}" is of ${found.type}; ${types.join(" or ")} is needed`);
}
