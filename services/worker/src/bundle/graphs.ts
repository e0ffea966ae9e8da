import { realpath } from "node:fs/promises";
import { dirname, join, posix, relative } from "node:path";
import { OnnxError, type OnnxGraph, type OnnxValue, readOnnxGraph } from "@atelier/onnx";
import type { BundleFiles } from "./bundle-files.ts";
import { MANIFEST_FILE } from "./manifest.ts";
import type { NetworkConfigs } from "./network-configs.ts";
import { complaintAboutPlace } from "./parts.ts";
import type { BundleProblems } from "./problems.ts";

export interface BundleGraphs {
  readonly textEncoder: OnnxGraph;
  readonly unet: OnnxGraph;
  readonly vaeDecoder: OnnxGraph;
  readonly vaeEncoder?: OnnxGraph;
}

/** What a network has to look like. A size of null may be anything; a set holds the alternatives. */
interface Expected {
  readonly inputs: Readonly<Record<string, { readonly types: readonly string[]; readonly dims?: Dims }>>;
  readonly output: { readonly name?: string; readonly dims: Dims };
}
type Dims = readonly (number | readonly number[] | null)[];

const FLOATS = ["float32", "float16"];
const INTEGERS = ["int64", "int32"];

/**
 * Reads each network's graph, without its weights, and holds its inputs and outputs against what the stages feed and
 * take, and against the configuration files. A graph that leaves a size open is taken at its configuration's word.
 */
export async function checkGraphs(
  files: BundleFiles,
  configs: NetworkConfigs,
  problems: BundleProblems,
): Promise<Partial<BundleGraphs>> {
  const latent = configs.vaeDecoder?.latentChannels ?? null;
  const hidden = configs.textEncoder?.hiddenSize ?? null;
  const check = (file: string, expected: Expected) => checkGraph(files, file, expected, problems);

  const textEncoder = await check("text_encoder/model.onnx", {
    inputs: { input_ids: { types: INTEGERS } },
    output: { name: "last_hidden_state", dims: [null, null, hidden] },
  });
  const unet = await check("unet/model.onnx", {
    inputs: {
      sample: { types: FLOATS, dims: [null, latent, null, null] },
      timestep: { types: [...FLOATS, ...INTEGERS] },
      encoder_hidden_states: { types: FLOATS, dims: [null, null, hidden] },
    },
    output: { dims: [null, latent, null, null] },
  });
  const vaeDecoder = await check("vae_decoder/model.onnx", {
    inputs: { latent_sample: { types: FLOATS, dims: [null, latent, null, null] } },
    output: { dims: [null, 3, null, null] },
  });
  const vaeEncoder = await check("vae_encoder/model.onnx", {
    inputs: { sample: { types: FLOATS, dims: [null, 3, null, null] } },
    // Means, or means and logarithms of variances.
    output: { dims: [null, latent === null ? null : [latent, 2 * latent], null, null] },
  });
  return {
    ...(textEncoder && { textEncoder }),
    ...(unet && { unet }),
    ...(vaeDecoder && { vaeDecoder }),
    ...(vaeEncoder && { vaeEncoder }),
  };
}

async function checkGraph(
  files: BundleFiles,
  file: string,
  expected: Expected,
  problems: BundleProblems,
): Promise<OnnxGraph | undefined> {
  const graph = await readGraph(files, file, problems);
  if (graph === undefined) return undefined;
  const complaints = [
    ...complaintsAboutInputs(graph, expected),
    ...complaintsAboutOutput(graph, expected),
    ...(await complaintsAboutExternalData(files, file, graph)),
  ];
  for (const complaint of complaints) problems.add(file, complaint);
  return graph;
}

async function readGraph(files: BundleFiles, file: string, problems: BundleProblems): Promise<OnnxGraph | undefined> {
  const bytes = await files.protobuf(file);
  if (bytes === undefined) return undefined;
  try {
    return readOnnxGraph(bytes);
  } catch (error) {
    if (!(error instanceof OnnxError)) throw error;
    problems.add(file, error.message);
    return undefined;
  }
}

function complaintsAboutInputs(graph: OnnxGraph, { inputs }: Expected): string[] {
  const names = graph.inputs.map(({ name }) => name).join(", ");
  const missing = Object.keys(inputs).filter((name) => !graph.inputs.some((input) => input.name === name));
  const strange = graph.inputs.filter(({ name }) => !Object.hasOwn(inputs, name));
  const known = graph.inputs.filter(({ name }) => Object.hasOwn(inputs, name));
  return [
    ...missing.map((name) => `has no input "${name}" (its inputs: ${names})`),
    ...strange.map(({ name }) => `asks for an input "${name}" that this family of models does not have`),
    ...known.flatMap((input) => {
      const { types, dims } = inputs[input.name]!;
      const wrongType = !types.includes(input.type);
      return [
        ...(wrongType ? [`its input "${input.name}" is ${input.type}, not ${types.join(" or ")}`] : []),
        ...(dims === undefined ? [] : complaintsAboutDims("input", input, dims)),
      ];
    }),
  ];
}

function complaintsAboutOutput(graph: OnnxGraph, { output }: Expected): string[] {
  const found = output.name === undefined ? graph.outputs[0] : graph.outputs.find(({ name }) => name === output.name);
  if (found !== undefined) return complaintsAboutDims("output", found, output.dims);
  const names = graph.outputs.map(({ name }) => name).join(", ");
  return [`has no output "${output.name}" (its outputs: ${names})`];
}

/** An exporter may leave a size open, or the whole shape; only what is stated can be wrong. */
function complaintsAboutDims(kind: string, { name, dims }: OnnxValue, expected: Dims): string[] {
  if (dims.length === 0) return [];
  const fits =
    dims.length === expected.length &&
    dims.every((dim, i) => {
      const wanted = expected[i] ?? null;
      return typeof dim === "string" || wanted === null || [wanted].flat().includes(dim);
    });
  if (fits) return [];
  const wanted = expected.map((dim) => (dim === null ? "any" : [dim].flat().join(" or "))).join(", ");
  return [`its ${kind} "${name}" has the shape [${dims.join(", ")}], and the rest of the bundle needs [${wanted}]`];
}

/** onnxruntime would open whatever file the graph names: hold it to the rules of a part before it gets the chance. */
async function complaintsAboutExternalData(files: BundleFiles, file: string, graph: OnnxGraph): Promise<string[]> {
  const complaints: string[] = [];
  for (const { location, bytesMin } of graph.externalData) {
    const complaint = await complaintAboutExternalFile(files, file, location, bytesMin);
    if (complaint !== undefined) complaints.push(`keeps weights in "${location.slice(0, 200)}", which ${complaint}`);
  }
  return complaints;
}

async function complaintAboutExternalFile(
  files: BundleFiles,
  file: string,
  location: string,
  bytesMin: number,
): Promise<string | undefined> {
  // Relative to the graph's own folder, and never above it, as the ONNX specification has it.
  const folder = join(files.root, dirname(file));
  const complaint = await complaintAboutPlace(await realpath(folder), location);
  if (complaint !== undefined) return complaint;
  const part = relative(files.root, posix.join(folder, location));
  if (!files.has(part)) return `is not among the parts that ${MANIFEST_FILE} lists, or is no good as one`;
  if (files.bytesOf(part) >= bytesMin) return undefined;
  return `is truncated: it has ${files.bytesOf(part)} bytes, the graph points to ${bytesMin}`;
}
