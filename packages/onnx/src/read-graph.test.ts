import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { OnnxError, proto, readOnnxGraph } from "./index.ts";

describe("readOnnxGraph", () => {
  it("tells what a network takes and gives: names, types, fixed sizes as numbers and open ones by their symbol", () => {
    const graph = readOnnxGraph(
      model({
        graph: {
          input: [value("sample", 1, [2, 4, "height", ""])],
          output: [value("out", 10, ["batch", 3])],
        },
        opsetImport: [
          { domain: "com.microsoft", version: 1n },
          { domain: "", version: 17n },
        ],
      }),
    );
    expect(graph).toEqual({
      inputs: [{ name: "sample", type: "float32", dims: [2, 4, "height", "?"] }],
      outputs: [{ name: "out", type: "float16", dims: ["batch", 3] }],
      externalData: [],
      opset: 17,
    });
  });

  it("leaves out inputs that have a stored value, as old exporters list weights among the inputs", () => {
    const graph = readOnnxGraph(
      model({ graph: { input: [value("x", 1, []), value("w", 1, [])], initializer: [{ name: "w" }], output: OUT } }),
    );
    expect(graph.inputs.map(({ name }) => name)).toEqual(["x"]);
  });

  it("finds weights in other files wherever tensors hide, and how long each file has to be", () => {
    const constant = (location: string) => ({ attribute: [{ name: "value", t: external(location, 0, 4) }] });
    const graph = readOnnxGraph(
      model({
        graph: {
          output: OUT,
          initializer: [external("weights", 0, 100), external("weights", 100, 28), external("weights", 8, 4)],
          sparseInitializer: [{ values: external("sparse", 0, 4) }],
          node: [
            constant("attribute"),
            { attribute: [{ name: "branch", g: { node: [constant("subgraph")] } }] },
            { attribute: [{ name: "many", tensors: [external("list", 0, 4)] }] },
          ],
        },
        functions: [{ name: "f", node: [constant("function")] }],
      }),
    );
    expect(graph.externalData).toEqual([
      { location: "weights", bytesMin: 128 },
      { location: "sparse", bytesMin: 4 },
      { location: "attribute", bytesMin: 4 },
      { location: "subgraph", bytesMin: 4 },
      { location: "list", bytesMin: 4 },
      { location: "function", bytesMin: 4 },
    ]);
  });

  it("refuses offsets that no file can have", () => {
    const bytes = model({ graph: { output: OUT, initializer: [external("weights", -8, 4)] } });
    expect(() => readOnnxGraph(bytes)).toThrow(OnnxError);
  });

  it("refuses a file cut off anywhere", () => {
    const whole = model({ graph: { output: OUT, initializer: [{ name: "w", rawData: new Uint8Array(1000) }] } });
    expect(() => readOnnxGraph(whole)).not.toThrow();
    for (let length = 0; length < whole.length; length += 13) {
      expect(() => readOnnxGraph(whole.subarray(0, length)), `${length} bytes`).toThrow(OnnxError);
    }
  });

  it("refuses what is no ONNX file at all", () => {
    expect(() => readOnnxGraph(new TextEncoder().encode("version https://git-lfs.github.com/spec/v1"))).toThrow(
      OnnxError,
    );
  });

  it("keeps fields that it does not know, so that a rewritten graph loses nothing", () => {
    const docString = Uint8Array.of(0x32, 2, 0x68, 0x69); // ModelProto.doc_string (field 6) = "hi"
    const bytes = new Uint8Array([...model({ graph: { output: OUT } }), ...docString]);
    const parsed = fromBinary(proto.ModelProtoSchema, bytes);
    expect(parsed.$unknown?.map(({ no }) => no)).toEqual([6]);
    expect(toBinary(proto.ModelProtoSchema, parsed)).toEqual(bytes);
  });
});

const OUT = [value("y", 1, [])];

function model(init: MessageInitShape<typeof proto.ModelProtoSchema>): Uint8Array {
  return toBinary(proto.ModelProtoSchema, create(proto.ModelProtoSchema, init));
}

function value(
  name: string,
  elemType: number,
  dims: (number | string)[],
): MessageInitShape<typeof proto.ValueInfoProtoSchema> {
  const dim = dims.map((size) =>
    typeof size === "number"
      ? { value: { case: "dimValue" as const, value: BigInt(size) } }
      : { value: { case: "dimParam" as const, value: size } },
  );
  return { name, type: { value: { case: "tensorType", value: { elemType, shape: { dim } } } } };
}

function external(location: string, offset: number, length: number): MessageInitShape<typeof proto.TensorProtoSchema> {
  return {
    name: location,
    dataLocation: proto.TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries({ location, offset: `${offset}`, length: `${length}` }).map(([key, value]) => ({
      key,
      value,
    })),
  };
}
