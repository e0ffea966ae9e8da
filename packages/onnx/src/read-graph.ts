import { fromBinary } from "@bufbuild/protobuf";
import {
  type GraphProto,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  type SparseTensorProto,
  type TensorProto,
  TensorProto_DataLocation,
  type ValueInfoProto,
} from "../gen/onnx_pb.ts";
import { ELEMENT_TYPES } from "./data-types.ts";

/** One input or output of a network. */
export interface OnnxValue {
  readonly name: string;
  /** "float32", "int64", ...; "unknown" where the graph does not say, or says something newer than this list. */
  readonly type: string;
  /** A number where the graph fixes a size, its symbol ("batch", or "?") where it does not. */
  readonly dims: readonly (number | string)[];
}

/** What a network takes and gives, and where its weights lie: all that can be known without loading them. */
export interface OnnxGraph {
  /** What a caller has to feed: inputs that have a stored value of the same name are left out. */
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
  /** Weights kept in other files, as the graph names them: relative to its own folder if it is honest. Unchecked. */
  readonly externalData: readonly ExternalData[];
  /** Version of the default operator set. */
  readonly opset: number;
}

export interface ExternalData {
  readonly location: string;
  /** How many bytes the file must have at least for every weight that points into it. */
  readonly bytesMin: number;
}

export class OnnxError extends Error {
  override readonly name = "OnnxError";
}

/**
 * Reads what an ONNX file says about itself. Weights inside `bytes` are neither copied nor looked at.
 *
 * @throws OnnxError when the bytes are not a whole ONNX model.
 */
export function readOnnxGraph(bytes: Uint8Array): OnnxGraph {
  const model = parseModel(bytes);
  const graph = model.graph;
  if (graph === undefined) throw new OnnxError("holds no graph");
  if (graph.output.length === 0) throw new OnnxError("its graph has no outputs");

  const stored = new Set(graph.initializer.map((tensor) => tensor.name));
  return {
    inputs: graph.input.filter((value) => !stored.has(value.name)).map(describe),
    outputs: graph.output.map(describe),
    externalData: externalData(model),
    opset: Number(model.opsetImport.find(({ domain }) => domain === "" || domain === "ai.onnx")?.version ?? 0n),
  };
}

/** @throws OnnxError when the bytes are not a whole ONNX model. */
export function parseModel(bytes: Uint8Array): ModelProto {
  try {
    return fromBinary(ModelProtoSchema, bytes);
  } catch (cause) {
    throw new OnnxError(`is not a whole ONNX file: ${(cause as Error).message}`, { cause });
  }
}

function describe(value: ValueInfoProto): OnnxValue {
  const tensor = value.type?.value.case === "tensorType" ? value.type.value.value : undefined;
  return {
    name: value.name,
    type: ELEMENT_TYPES.get(tensor?.elemType ?? 0) ?? "unknown",
    dims: (tensor?.shape?.dim ?? []).map(({ value: size }) => {
      if (size.case === "dimValue") return Number(size.value);
      return size.case === "dimParam" && size.value !== "" ? size.value : "?";
    }),
  };
}

/** Every file that any tensor of the model points to. Tensors hide in attributes, subgraphs and functions as well. */
function externalData(model: ModelProto): ExternalData[] {
  const bytesMin = new Map<string, number>();
  for (const tensor of tensorsOf(model)) {
    if (tensor.dataLocation !== TensorProto_DataLocation.EXTERNAL) continue;
    const entries = new Map(tensor.externalData.map(({ key, value }) => [key, value]));
    const location = entries.get("location") ?? "";
    const end = byteCount(entries.get("offset"), tensor.name) + byteCount(entries.get("length"), tensor.name);
    bytesMin.set(location, Math.max(end, bytesMin.get(location) ?? 0));
  }
  return [...bytesMin].map(([location, min]) => ({ location, bytesMin: min }));
}

function byteCount(text: string | undefined, tensor: string): number {
  const bytes = Number(text ?? 0);
  if (!Number.isSafeInteger(bytes) || bytes < 0) {
    throw new OnnxError(`its tensor "${tensor}" lies at offset or length ${text} of an external file`);
  }
  return bytes;
}

function* tensorsOf(model: ModelProto): Generator<TensorProto> {
  if (model.graph !== undefined) yield* tensorsOfGraph(model.graph);
  for (const { node } of model.functions) yield* tensorsOfNodes(node);
}

function* tensorsOfGraph(graph: GraphProto): Generator<TensorProto> {
  yield* graph.initializer;
  yield* graph.sparseInitializer.flatMap(tensorsOfSparse);
  yield* tensorsOfNodes(graph.node);
}

function* tensorsOfNodes(nodes: readonly NodeProto[]): Generator<TensorProto> {
  for (const { t, tensors, g, graphs, sparseTensor, sparseTensors } of nodes.flatMap(({ attribute }) => attribute)) {
    if (t !== undefined) yield t;
    yield* tensors;
    if (sparseTensor !== undefined) yield* tensorsOfSparse(sparseTensor);
    yield* sparseTensors.flatMap(tensorsOfSparse);
    if (g !== undefined) yield* tensorsOfGraph(g);
    for (const graph of graphs) yield* tensorsOfGraph(graph);
  }
}

function tensorsOfSparse({ values, indices }: SparseTensorProto): TensorProto[] {
  return [values, indices].filter((tensor) => tensor !== undefined);
}
