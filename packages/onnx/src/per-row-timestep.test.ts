import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { OnnxError, perRowTimestep, proto } from "./index.ts";

type Node = MessageInitShape<typeof proto.NodeProtoSchema>;
type Value = MessageInitShape<typeof proto.ValueInfoProtoSchema>;
type Graph = Omit<Extract<MessageInitShape<typeof proto.GraphProtoSchema>, { node?: unknown }>, "$typeName">;
interface Unet extends Pick<Graph, "valueInfo" | "initializer" | "output"> {
  readonly nodes: readonly Node[];
  readonly timestep?: Value;
}

const FLOAT = 1;
const INT64 = 7;
const FLOAT16 = 10;

const SIZE = [
  node("Shape", ["sample"], "shape"),
  node("Gather", ["shape", "zero"], "b", { axis: 0 }),
  node("Unsqueeze", ["b", "axis0"], "size"),
];
const MUL = node("Mul", ["f", "table"], "angles");
/** What torch's tracing exporter writes for a whole timestep without dimensions. */
const TRACED = [
  ...SIZE,
  node("Unsqueeze", ["timestep", "axis0"], "t1"),
  node("Cast", ["t1"], "t2", { to: INT64 }),
  node("Expand", ["t2", "size"], "t3"),
  node("Unsqueeze", ["t3", "axis1"], "t4"),
  node("Cast", ["t4"], "t5", { to: FLOAT }),
  node("Mul", ["t5", "table"], "angles"),
];
const STORED = [
  whole("zero", []),
  whole("axis0", [1]),
  { ...whole("axis1", [1]), int64Data: [1n] },
  { ...whole("two", [1]), int64Data: [2n] },
  { name: "table", dims: [1n, 2n], dataType: FLOAT, rawData: new Uint8Array(new Float32Array([1, 0.01]).buffer) },
];

// Whether a rewritten graph computes the right numbers: test/golden/timesteps.test.ts, against torch's exports.
describe("perRowTimestep", () => {
  it("makes the input a float32 for each row, the Unsqueeze an Identity, and a Cast to whole numbers a Cast to float32", () => {
    const { graph } = rewritten(unet(TRACED));
    expect(graph!.input.map(describeValue)).toEqual(["sample float32 [b,4]", "timestep float32 [batch]"]);
    expect(graph!.node.map(describeNode)).toEqual([
      "Shape sample -> shape",
      "Gather shape zero -> b",
      "Unsqueeze b axis0 -> size",
      "Identity timestep -> t1",
      "Cast t1 -> t2 to=1",
      "Expand t2 size -> t3",
      "Unsqueeze t3 axis1 -> t4",
      "Cast t4 -> t5 to=1",
      "Mul t5 table -> angles",
    ]);
  });

  it("forgets the types and shapes that the exporter noted of what it changes, and no others", () => {
    const notes = [value("t1", INT64, [1]), value("t3", INT64, ["b"]), value("angles", FLOAT, ["b", 2])];
    const { graph } = rewritten(unet(TRACED, { valueInfo: notes }));
    expect(graph!.valueInfo.map(({ name }) => name)).toEqual(["angles"]);
  });

  it("follows exporters that read the batch size in one node, and axes that are attributes", () => {
    const { graph } = rewritten(
      unet([
        node("Shape", ["sample"], "size", { start: 0, end: 1 }),
        node("Unsqueeze", ["timestep"], "t1", { axes: [0] }),
        node("Expand", ["t1", "size"], "t2"),
        node("Unsqueeze", ["t2"], "t3", { axes: [1] }),
        node("Cast", ["t3"], "t4", { to: FLOAT }),
        node("Mul", ["t4", "table"], "angles"),
      ]),
    );
    expect(graph!.node[1]).toMatchObject({ opType: "Identity", input: ["timestep"], attribute: [] });
  });

  it("keeps stored tensors byte for byte, and what it does not know of the model", () => {
    const docString = Uint8Array.of(0x32, 2, 0x68, 0x69); // ModelProto.doc_string (field 6) = "hi"
    const graphDocString = Uint8Array.of(0x3a, 4, 0x52, 2, 0x68, 0x69); // GraphProto.doc_string (field 10) = "hi"
    const original = new Uint8Array([...unet(TRACED), ...docString, ...graphDocString]);
    const before = fromBinary(proto.ModelProtoSchema, original);
    const after = rewritten(original);
    expect(after.graph!.initializer).toEqual(before.graph!.initializer);
    expect(after.graph!.initializer.length).toBeGreaterThan(3);
    expect(after.$unknown).toEqual(before.$unknown);
    expect(after.graph!.$unknown?.map(({ no }) => no)).toEqual([10]);
    expect([after.irVersion, after.opsetImport]).toEqual([before.irVersion, before.opsetImport]);
  });

  it("leaves weights in other files where they are", () => {
    const external = {
      name: "w",
      dims: [4n],
      dataType: FLOAT,
      dataLocation: proto.TensorProto_DataLocation.EXTERNAL,
      externalData: [{ key: "location", value: "model.onnx_data" }],
    };
    const { graph } = rewritten(unet(TRACED, { initializer: [...STORED, external] }));
    expect(graph!.initializer.at(-1)).toMatchObject(external);
  });

  it("gives back the very bytes of a graph that has a float timestep for each row already", () => {
    const bytes = unet([node("Unsqueeze", ["timestep", "axis1"], "t"), node("Mul", ["t", "table"], "angles")], {
      timestep: value("timestep", FLOAT, ["batch"]),
    });
    expect(perRowTimestep(bytes)).toEqual({ bytes });
    expect((perRowTimestep(bytes) as { bytes: Uint8Array }).bytes).toBe(bytes);
  });

  it("turns whole timesteps of each row into float32 ones", () => {
    const { graph } = rewritten(
      unet([node("Unsqueeze", ["timestep", "axis1"], "t"), node("Cast", ["t"], "f", { to: FLOAT }), MUL], {
        timestep: value("timestep", INT64, ["steps"]),
      }),
    );
    expect(graph!.input.map(describeValue)[1]).toBe("timestep float32 [batch]");
  });

  it("leaves a float16 timestep float16", () => {
    const nodes = [...SIZE, node("Expand", ["timestep", "size"], "e"), node("Unsqueeze", ["e", "axis1"], "f"), MUL];
    const { graph } = rewritten(unet(nodes, { timestep: value("timestep", FLOAT16, [1]) }));
    expect(graph!.input.map(describeValue)[1]).toBe("timestep float16 [batch]");
  });

  it.each<[string, string | RegExp, Unet]>([
    ["no timestep", /no input "timestep"/, { nodes: [], timestep: value("t", INT64, []) }],
    [
      "a batch size of its own",
      /not stated to be one number/,
      { nodes: TRACED, timestep: value("timestep", INT64, [2]) },
    ],
    ["a timestep of no stated shape", /not stated to be one/, { nodes: TRACED, timestep: { name: "timestep" } }],
    [
      "a lookup by timestep",
      /reaches the node Gather "lookup", which/,
      { nodes: [...TRACED, node("Gather", ["sample", "t1"], "g", {}, "lookup")] },
    ],
    [
      "a vendor's operator",
      /the node com\.microsoft\.Expand/,
      { nodes: [{ ...node("Expand", ["timestep", "size"], "x"), domain: "com.microsoft" }] },
    ],
    [
      "a product with what is not yet the batch's",
      /the node Mul/,
      { nodes: [node("Cast", ["timestep"], "f", { to: FLOAT }), MUL] },
    ],
    [
      "an Expand to a fixed batch",
      /the node Expand/,
      { nodes: [node("Unsqueeze", ["timestep", "axis0"], "t1"), node("Expand", ["t1", "two"], "e")] },
    ],
    [
      "an Expand by the timestep itself",
      /the node Shape/,
      { nodes: [node("Shape", ["timestep"], "size", { start: 0, end: 1 }), node("Expand", ["timestep", "size"], "e")] },
    ],
    [
      "a branch that reads the timestep",
      /the node If/,
      {
        nodes: [
          ...TRACED,
          {
            opType: "If",
            input: ["c"],
            output: ["o"],
            attribute: [{ name: "then_branch", g: { node: [node("Neg", ["t2"], "n")] } }],
          },
        ],
      },
    ],
    ["a timestep that is given back", /reaches the output "t5"/, { nodes: TRACED, output: [value("t5", FLOAT, [])] }],
    [
      "a float timestep that is truncated on purpose",
      /the node Cast/,
      { nodes: TRACED, timestep: value("timestep", FLOAT, []) },
    ],
    ["a timestep that nothing reads", /nothing reads "timestep"/, { nodes: [node("Neg", ["sample"], "angles")] }],
  ])("changes nothing and says why, where it meets %s", (_, reason, { nodes, ...rest }) => {
    expect(perRowTimestep(unet(nodes, rest))).toEqual({ cannot: expect.stringMatching(reason) });
  });

  it("refuses to copy a file with more weights inside than the limit", () => {
    const bytes = unet(TRACED);
    expect(perRowTimestep(bytes, { inlineBytesMax: bytes.length })).toHaveProperty("bytes");
    expect(perRowTimestep(bytes, { inlineBytesMax: bytes.length - 1 })).toEqual({
      cannot: expect.stringMatching(/^it holds \d+ bytes; above \d+ weights have to lie in external data$/),
    });
  });

  it("refuses what is no ONNX file", () => {
    expect(() => perRowTimestep(new TextEncoder().encode("version https://git-lfs.github.com/spec/v1"))).toThrow(
      OnnxError,
    );
  });
});

function unet(nodes: readonly Node[], { timestep, ...graph }: Omit<Unet, "nodes"> = {}): Uint8Array {
  const model = {
    irVersion: 8n,
    opsetImport: [{ domain: "", version: 17n }],
    graph: {
      node: [...nodes],
      input: [value("sample", FLOAT, ["b", 4]), timestep ?? value("timestep", INT64, [])],
      output: [value("angles", FLOAT, ["b", 2])],
      initializer: STORED,
      ...graph,
    },
  };
  return toBinary(proto.ModelProtoSchema, create(proto.ModelProtoSchema, model));
}

function rewritten(bytes: Uint8Array): proto.ModelProto {
  const copy = bytes.slice();
  const result = perRowTimestep(bytes);
  expect(bytes, "the bytes given are left alone").toEqual(copy);
  if ("cannot" in result) throw new Error(result.cannot);
  return fromBinary(proto.ModelProtoSchema, result.bytes);
}

function node(
  opType: string,
  input: string[],
  output: string,
  attributes: Record<string, number | number[]> = {},
  name = "",
) {
  const attribute = Object.entries(attributes).map(([key, number]) =>
    typeof number === "number" ? { name: key, i: BigInt(number) } : { name: key, ints: number.map(BigInt) },
  );
  return { opType, name, input, output: [output], attribute, domain: "" };
}

function value(name: string, elemType: number, dims: (number | string)[]) {
  const dim = dims.map((size) =>
    typeof size === "number"
      ? { value: { case: "dimValue" as const, value: BigInt(size) } }
      : { value: { case: "dimParam" as const, value: size } },
  );
  return { name, type: { value: { case: "tensorType" as const, value: { elemType, shape: { dim } } } } };
}

/** An int64 constant that is zero; raw, as torch writes it. */
function whole(name: string, dims: number[]) {
  const rawData = new Uint8Array(8);
  return { name, dims: dims.map(BigInt), dataType: INT64, ...(dims.length === 0 ? { rawData } : { int64Data: [0n] }) };
}

function describeValue({ name, type }: proto.ValueInfoProto): string {
  if (type?.value.case !== "tensorType") return name;
  const { elemType, shape } = type.value.value;
  const dims = shape?.dim.map(({ value: size }) => size.value);
  return `${name} ${{ 1: "float32", 7: "int64", 10: "float16" }[elemType]} [${dims}]`;
}

function describeNode({ opType, input, output, attribute }: proto.NodeProto): string {
  const to = attribute.filter(({ name }) => name === "to").map(({ i }) => ` to=${i}`);
  return `${opType} ${input.join(" ")} -> ${output.join(" ")}${to.join("")}`;
}
