import { create, toBinary } from "@bufbuild/protobuf";
import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { GraphProtoSchema, type ModelProto, ModelProtoSchema } from "../gen/onnx_pb.ts";

/**
 * The bytes of `model`, which was parsed from `original` and may have been changed since, except for the tensors that
 * its graph stores: those are copied once from `original`, byte for byte. To serialise them again would take several
 * times as long and four times their size in memory.
 *
 * Allocates the result, and what is not a stored tensor twice. Changes neither argument.
 */
export function writeModel(model: ModelProto, original: Uint8Array): Uint8Array {
  const stored = storedTensors(original);
  // Copies of the outer objects only, unknown fields included; what they hold is shared.
  const graph = toBinary(GraphProtoSchema, { ...(model.graph ?? create(GraphProtoSchema)), initializer: [] });
  const rest = toBinary(ModelProtoSchema, { ...model, graph: undefined });
  // Fields of a message may stand in any order: the stored tensors come last in the graph, the graph last in the model.
  const graphBytes = stored.reduce((sum, { length }) => sum + length, graph.length);
  const header = new BinaryWriter().tag(GRAPH_FIELD, WireType.LengthDelimited).uint32(graphBytes).finish();
  return concatenated([rest, header, graph, ...stored]);
}

/** Numbers of the standard: ModelProto.graph and GraphProto.initializer. */
const GRAPH_FIELD = 7;
const INITIALIZER_FIELD = 5;

/** Views of every GraphProto.initializer, each with its tag and length. */
function storedTensors(bytes: Uint8Array): Uint8Array[] {
  return fieldsOf(bytes, GRAPH_FIELD).flatMap((field) => {
    const reader = new BinaryReader(field);
    reader.tag();
    return fieldsOf(reader.bytes(), INITIALIZER_FIELD);
  });
}

function fieldsOf(message: Uint8Array, wanted: number): Uint8Array[] {
  const reader = new BinaryReader(message);
  const found: Uint8Array[] = [];
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const [field, type] = reader.tag();
    reader.skip(type, field);
    if (field === wanted) found.push(message.subarray(start, reader.pos));
  }
  return found;
}

function concatenated(pieces: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
