import type { GraphProto, NodeProto, TensorProto } from "../gen/onnx_pb.ts";
import { INT64 } from "./data-types.ts";

/** Who makes each value of a graph, who reads it, and the small constants that steer shapes. */
export class GraphIndex {
  readonly #producers = new Map<string, NodeProto>();
  readonly #consumers = new Map<string, NodeProto[]>();
  readonly #initializers: ReadonlyMap<string, TensorProto>;
  readonly #inputs: ReadonlySet<string>;

  constructor(graph: GraphProto) {
    this.#initializers = new Map(graph.initializer.map((tensor) => [tensor.name, tensor]));
    this.#inputs = new Set(graph.input.map(({ name }) => name));
    for (const node of graph.node) {
      for (const name of node.output) this.#producers.set(name, node);
      for (const name of new Set(valuesReadBy(node))) {
        this.#consumers.set(name, [...(this.#consumers.get(name) ?? []), node]);
      }
    }
  }

  isInput(value: string | undefined): boolean {
    return value !== undefined && this.#inputs.has(value);
  }

  producerOf(value: string): NodeProto | undefined {
    return this.#producers.get(value);
  }

  /** Nodes that read `value`, those among them whose branches or loop bodies do. */
  consumersOf(value: string): readonly NodeProto[] {
    return this.#consumers.get(value) ?? [];
  }

  /** The whole numbers of an int64 constant, undefined where `value` is something else. */
  integersOf(value: string | undefined): readonly number[] | undefined {
    if (value === undefined) return undefined;
    const stored = this.#initializers.get(value);
    if (stored !== undefined) return integersOfTensor(stored);
    const node = this.#producers.get(value);
    if (node === undefined || !isStandard(node)) return undefined;
    if (node.opType === "Identity") return this.integersOf(node.input[0]);
    if (node.opType !== "Constant") return undefined;
    const attribute = node.attribute[0];
    if (attribute?.name === "value" && attribute.t !== undefined) return integersOfTensor(attribute.t);
    if (attribute?.name === "value_int") return [Number(attribute.i)];
    return attribute?.name === "value_ints" ? attribute.ints.map(Number) : undefined;
  }
}

/** An operator of the standard's own set, not of a vendor's or a function of the model. */
export function isStandard({ domain }: NodeProto): boolean {
  return domain === "" || domain === "ai.onnx";
}

export function integerAttribute(node: NodeProto, name: string): number | undefined {
  const attribute = node.attribute.find((candidate) => candidate.name === name);
  return attribute === undefined ? undefined : Number(attribute.i);
}

/** The axes of a Squeeze or Unsqueeze: an attribute up to opset 12, an input from 13 on. */
export function axesOf(node: NodeProto, index: GraphIndex): readonly number[] | undefined {
  const attribute = node.attribute.find(({ name }) => name === "axes");
  return attribute === undefined ? index.integersOf(node.input[1]) : attribute.ints.map(Number);
}

function integersOfTensor({ dataType, rawData, int64Data, dims }: TensorProto): readonly number[] | undefined {
  const count = dims.reduce((product, size) => product * Number(size), 1);
  if (dataType !== INT64) return undefined;
  if (int64Data.length === count) return int64Data.map(Number);
  if (rawData.length !== count * 8) return undefined; // Held in another file, or damaged.
  const view = new DataView(rawData.buffer, rawData.byteOffset, rawData.byteLength);
  return Array.from({ length: count }, (_, i) => Number(view.getBigInt64(i * 8, true)));
}

function* valuesReadBy(node: NodeProto): Generator<string> {
  yield* node.input;
  for (const { g, graphs } of node.attribute) {
    for (const graph of g === undefined ? graphs : [g, ...graphs]) {
      for (const inner of graph.node) yield* valuesReadBy(inner);
      yield* graph.output.map(({ name }) => name);
    }
  }
}
