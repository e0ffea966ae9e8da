import { invariant } from "@atelier/core";
import { create } from "@bufbuild/protobuf";
import { type GraphProto, type NodeProto, TensorShapeProtoSchema, type ValueInfoProto } from "../gen/onnx_pb.ts";
import { FLOAT16, FLOAT32, FLOAT64, INT32, INT64 } from "./data-types.ts";
import { axesOf, GraphIndex, integerAttribute, isStandard } from "./graph-index.ts";
import { parseModel } from "./read-graph.ts";
import { writeModel } from "./write-model.ts";

/** The rewritten model (the very bytes given, where nothing had to change), or why it has to stay as it is. */
export type PerRowTimestep = { readonly bytes: Uint8Array } | { readonly cannot: string };

/**
 * Rewrites a U-Net that takes one `timestep` for its whole batch so that it takes one for each row: [batch], and float32
 * where it was a whole number, so that Euler's fractional timesteps are not truncated.
 *
 * Such a graph expands its timestep to the batch and multiplies it, as a column, with a table of frequencies. The nodes
 * up to that product are followed one by one and adapted: what made a vector of the scalar becomes an Identity, a Cast to
 * whole numbers a Cast to float32, and the Expand to the batch has nothing left to do. If any node on the way is another,
 * nothing is changed and it is named: a wrong guess would be a wrong picture.
 *
 * float16 and float64 timesteps keep their type. Weights are copied once where they lie inside `bytes` and not at all
 * where they lie in other files, which the rewritten model names by the same relative paths.
 *
 * `inlineBytesMax` bounds the model's own file: while it is rewritten it is held twice, and protobuf ends at 2 GiB.
 *
 * @throws OnnxError when the bytes are not a whole ONNX model.
 */
export function perRowTimestep(bytes: Uint8Array, { inlineBytesMax = 1.5e9 } = {}): PerRowTimestep {
  const model = parseModel(bytes);
  const graph = model.graph;
  const input = graph?.input.find(({ name }) => name === INPUT);
  if (graph === undefined || input === undefined) return { cannot: `it has no input "${INPUT}"` };
  const start = placeOf(input);
  if (start === undefined) return { cannot: `its "${INPUT}" is not stated to be one number, whole or float` };
  if (start.expanded && isFloat(start.type)) return { bytes };

  const plan = planOf(graph, start);
  if ("cannot" in plan) return plan;
  if (bytes.length > inlineBytesMax) {
    return { cannot: `it holds ${bytes.length} bytes; above ${inlineBytesMax} weights have to lie in external data` };
  }
  apply(plan, graph, input);
  return { bytes: writeModel(model, bytes) };
}

const INPUT = "timestep";

/** A value made from the timestep and nothing else, before the rewrite. */
interface Place {
  readonly value: string;
  /** [], [1] or [batch], [1, 1] or [batch, 1]. */
  readonly form: "scalar" | "vector" | "column";
  /** It has a row for each row of the batch. */
  readonly expanded: boolean;
  readonly type: number;
}

/** What a node makes of a place. */
interface Passage {
  /** Missing at the end of the way. */
  readonly to?: Pick<Place, "form" | "expanded" | "type">;
  readonly edit?: "identity" | "cast to float32";
}

interface Plan {
  readonly edits: ReadonlyMap<NodeProto, NonNullable<Passage["edit"]>>;
  readonly values: ReadonlySet<string>;
}

function placeOf({ name, type }: ValueInfoProto): Place | undefined {
  const tensor = type?.value.case === "tensorType" ? type.value.value : undefined;
  const dims = tensor?.shape?.dim;
  if (tensor === undefined || dims === undefined || dims.length > 1) return undefined;
  if (!isFloat(tensor.elemType) && !isInteger(tensor.elemType)) return undefined;
  const one = dims[0]?.value.case === "dimValue";
  if (one && dims[0]?.value.value !== 1n) return undefined; // Exported for one batch size and no other.
  const form = dims.length === 0 ? "scalar" : "vector";
  return { value: name, form, expanded: form === "vector" && !one, type: tensor.elemType };
}

/** Follows the timestep to every product with a table of frequencies. */
function planOf(graph: GraphProto, start: Place): Plan | { readonly cannot: string } {
  const index = new GraphIndex(graph);
  const outputs = new Set(graph.output.map(({ name }) => name));
  const edits = new Map<NodeProto, NonNullable<Passage["edit"]>>();
  const values = new Set<string>();
  const waiting = [start];
  for (let place = waiting.pop(); place !== undefined; place = waiting.pop()) {
    values.add(place.value);
    if (outputs.has(place.value)) return { cannot: `its ${INPUT} reaches the output "${place.value}"` };
    const consumers = index.consumersOf(place.value);
    if (consumers.length === 0) return { cannot: `nothing reads "${place.value}", which is made of its ${INPUT}` };
    for (const node of consumers) {
      const passage = passageThrough(node, place, index);
      if (passage === undefined)
        return { cannot: `its ${INPUT} reaches ${inWords(node)}, which is not understood here` };
      if (passage.edit !== undefined) edits.set(node, passage.edit);
      if (passage.to !== undefined) waiting.push({ ...passage.to, value: node.output[0]! });
    }
  }
  return { edits, values };
}

/** undefined where the node is not understood. */
function passageThrough(node: NodeProto, place: Place, index: GraphIndex): Passage | undefined {
  const { form } = place;
  const isFirst = node.input[0] === place.value && node.input.indexOf(place.value, 1) < 0;
  if (!isStandard(node) || node.output.length !== 1) return undefined;
  if (node.opType === "Mul") return endsIn(node, place) ? {} : undefined;
  if (!isFirst) return undefined;
  switch (node.opType) {
    case "Identity":
      return { to: place };
    case "Cast":
      return castFrom(place, integerAttribute(node, "to"));
    case "Expand": {
      const toBatch = form !== "column" && isBatchSize(node.input[1], index);
      return toBatch ? { to: { ...place, form: "vector", expanded: true } } : undefined;
    }
    case "Unsqueeze":
      return reshaped(place, axesOf(node, index), { toVector: [[0], [-1]], toColumn: [[1], [-1]] });
    case "Reshape":
      return reshaped(place, index.integersOf(node.input[1]), { toVector: [[1], [-1]], toColumn: [[-1, 1]] });
    default:
      return undefined;
  }
}

/** What was a scalar is [batch] already; a column of what is [batch] comes out right by itself. */
function reshaped(
  place: Place,
  numbers: readonly number[] | undefined,
  { toVector, toColumn }: { readonly toVector: readonly number[][]; readonly toColumn: readonly number[][] },
): Passage | undefined {
  if (place.form === "scalar" && isOneOf(numbers, toVector)) {
    return { to: { ...place, form: "vector" }, edit: "identity" };
  }
  if (place.form === "vector" && isOneOf(numbers, toColumn)) return { to: { ...place, form: "column" } };
  return undefined;
}

function castFrom(place: Place, type: number | undefined): Passage | undefined {
  if (type === undefined) return undefined;
  if (isFloat(type)) return { to: { ...place, type } };
  // Only whole numbers into whole numbers: a graph that truncates a fraction means to.
  if (isInteger(type) && isInteger(place.type)) return { to: { ...place, type }, edit: "cast to float32" };
  return undefined;
}

/** Beyond the product of the batch's column and a table nothing changes: it had a row for each row of the batch before. */
function endsIn(node: NodeProto, place: Place): boolean {
  const once = node.input.filter((name) => name === place.value).length === 1;
  return once && place.form === "column" && place.expanded && isFloat(place.type);
}

/** Whether `value` is the vector [batch], read from the shape of another input. */
function isBatchSize(value: string | undefined, index: GraphIndex): boolean {
  const node = index.producerOf(value ?? "");
  if (node === undefined || !isStandard(node)) return false;
  const [first, second, third] = node.input;
  switch (node.opType) {
    case "Identity":
    case "Cast":
      return isBatchSize(first, index);
    case "Concat":
      return node.input.length === 1 && isBatchSize(first, index);
    case "Reshape":
      return isOneOf(index.integersOf(second), [[1], [-1]]) && isBatchSize(first, index);
    case "Where": // torch's expand() lets sizes of -1 be what they were. A batch is never -1.
      return isBatchSize(third, index);
    case "Unsqueeze":
      return isOneOf(axesOf(node, index), [[0], [-1]]) && isBatchNumber(first, index);
    case "Shape":
      return isShapeOfInput(node, index) && integerAttribute(node, "end") === 1;
    default:
      return false;
  }
}

/** Whether `value` is the batch size as a scalar: element 0 of another input's shape. */
function isBatchNumber(value: string | undefined, index: GraphIndex): boolean {
  const node = index.producerOf(value ?? "");
  if (node === undefined || node.opType !== "Gather" || !isStandard(node)) return false;
  const shape = index.producerOf(node.input[0] ?? "");
  return shape !== undefined && isShapeOfInput(shape, index) && isOneOf(index.integersOf(node.input[1]), [[0]]);
}

function isShapeOfInput(node: NodeProto, index: GraphIndex): boolean {
  const [of] = node.input;
  const fromStart = (integerAttribute(node, "start") ?? 0) === 0;
  return node.opType === "Shape" && isStandard(node) && fromStart && index.isInput(of) && of !== INPUT;
}

function apply({ edits, values }: Plan, graph: GraphProto, input: ValueInfoProto): void {
  for (const [node, edit] of edits) {
    if (edit === "identity") {
      node.opType = "Identity";
      node.input = node.input.slice(0, 1);
      node.attribute = [];
    } else {
      node.attribute.find(({ name }) => name === "to")!.i = BigInt(FLOAT32);
    }
  }
  const type = input.type?.value;
  invariant(type?.case === "tensorType", "the input's type was read before");
  if (isInteger(type.value.elemType)) type.value.elemType = FLOAT32;
  type.value.shape = create(TensorShapeProtoSchema, { dim: [{ value: { case: "dimParam", value: "batch" } }] });
  // What the exporter noted of these values no longer holds; onnxruntime would refuse the contradiction.
  graph.valueInfo = graph.valueInfo.filter(({ name }) => !values.has(name));
}

function isFloat(type: number): boolean {
  return type === FLOAT32 || type === FLOAT16 || type === FLOAT64;
}

function isInteger(type: number): boolean {
  return type === INT64 || type === INT32;
}

function isOneOf(numbers: readonly number[] | undefined, lists: readonly (readonly number[])[]): boolean {
  if (numbers === undefined) return false;
  return lists.some((list) => list.length === numbers.length && list.every((wanted, i) => wanted === numbers[i]));
}

function inWords({ opType, name, domain }: NodeProto): string {
  return `the node ${domain === "" ? "" : `${domain}.`}${opType}${name === "" ? "" : ` "${name}"`}`;
}
