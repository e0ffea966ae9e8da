/**
 * Writes small ONNX graphs, so that tests can meet exports of shapes and types that no bundle at hand has.
 * Source of the field numbers: onnx/onnx.proto.
 */
export interface OnnxModel {
  readonly inputs: readonly TensorSpec[];
  readonly outputs: readonly TensorSpec[];
  readonly nodes: readonly NodeSpec[];
}

export interface TensorSpec {
  readonly name: string;
  readonly type: keyof typeof ELEMENT_TYPES;
  /** A name where the size is open. */
  readonly shape: readonly (number | string)[];
}

export interface NodeSpec {
  readonly op: string;
  readonly inputs: readonly string[];
  readonly output: string;
  readonly attributes?: Readonly<Record<string, number | readonly number[]>>;
}

const ELEMENT_TYPES = { float32: 1, int32: 6, int64: 7, float16: 10 } as const;
/** For the "to" of a Cast. */
export const FLOAT32 = ELEMENT_TYPES.float32;
export const FLOAT16 = ELEMENT_TYPES.float16;

/** The bytes of a model of opset 11. */
export function onnxModel({ inputs, outputs, nodes }: OnnxModel): Buffer {
  const graph = Buffer.concat([
    ...nodes.map((node) => field(1, nodeProto(node))),
    field(2, text("g")),
    ...inputs.map((spec) => field(11, valueInfo(spec))),
    ...outputs.map((spec) => field(12, valueInfo(spec))),
  ]);
  return Buffer.concat([number(1, 8), field(7, graph), field(8, number(2, 11))]);
}

function nodeProto({ op, inputs, output, attributes = {} }: NodeSpec): Buffer {
  return Buffer.concat([
    ...inputs.map((name) => field(1, text(name))),
    field(2, text(output)),
    field(4, text(op)),
    ...Object.entries(attributes).map(([name, value]) => field(5, attribute(name, value))),
  ]);
}

function attribute(name: string, value: number | readonly number[]): Buffer {
  const [kind, values] =
    typeof value === "number" ? [2, [number(3, value)]] : [7, value.map((item) => number(8, item))];
  return Buffer.concat([field(1, text(name)), ...values, number(20, kind)]);
}

function valueInfo({ name, type, shape }: TensorSpec): Buffer {
  const dims = shape.map((dim) => field(1, typeof dim === "number" ? number(1, dim) : field(2, text(dim))));
  const tensor = Buffer.concat([number(1, ELEMENT_TYPES[type]), field(2, Buffer.concat(dims))]);
  return Buffer.concat([field(1, text(name)), field(2, field(1, tensor))]);
}

function field(id: number, bytes: Buffer): Buffer {
  return Buffer.concat([varint((id << 3) | 2), varint(bytes.length), bytes]);
}

function number(id: number, value: number): Buffer {
  return Buffer.concat([varint(id << 3), varint(value)]);
}

function text(value: string): Buffer {
  return Buffer.from(value);
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let left = value;
  for (; left >= 0x80; left = Math.floor(left / 0x80)) bytes.push((left % 0x80) | 0x80);
  return Buffer.from([...bytes, left]);
}
