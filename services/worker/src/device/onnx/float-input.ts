/// <reference lib="esnext.float16" />
import { Tensor } from "onnxruntime-node";

/**
 * A float tensor that is written again and again, in the precision that the graph wants. `values.set()` converts.
 */
export interface FloatInput {
  readonly values: Float32Array | Float16Array;
  readonly tensor: Tensor;
}

export type FloatType = "float32" | "float16";

export function floatInput(type: FloatType, dims: readonly number[]): FloatInput {
  const size = dims.reduce((product, dim) => product * dim, 1);
  if (type === "float32") {
    const values = new Float32Array(size);
    return { values, tensor: new Tensor("float32", values, dims) };
  }
  const values = new Float16Array(size);
  return { values, tensor: float16Tensor(values, dims) };
}

/** Floats of a result, whatever its precision. */
export function asFloat32(tensor: { type: string; data: unknown }): Float32Array {
  if (tensor.type === "float32") return tensor.data as Float32Array;
  const { buffer, byteOffset, length } = tensor.data as Uint16Array;
  return Float32Array.from(new Float16Array(buffer, byteOffset, length));
}

/** A plain object: the Tensor constructor refuses float16 data where the runtime has a Float16Array of its own. */
function float16Tensor(values: Float16Array, dims: readonly number[]): Tensor {
  const data = new Uint16Array(values.buffer);
  return { type: "float16", data, dims, size: data.length, location: "cpu" } as unknown as Tensor;
}
