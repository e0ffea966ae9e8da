import { realpath } from "node:fs/promises";
import { dirname, posix, relative } from "node:path";
import { OnnxError, type OnnxGraph, type OnnxValue, readOnnxGraph } from "@atelier/onnx";
import type { BundleFiles } from "./bundle-files.ts";
import { FAMILIES, type FamilyName, type TextEncoderRole } from "./families.ts";
import { MANIFEST_FILE } from "./manifest.ts";
import { type NetworkConfigs, pooledSize, type TextEncoderConfig, TIME_IDS } from "./network-configs.ts";
import { complaintAboutPlace } from "./parts.ts";
import type { BundleProblems } from "./problems.ts";

export interface BundleGraphs {
  /** One for each of the family's, in its order. */
  readonly textEncoders: readonly OnnxGraph[];
  readonly unet: OnnxGraph;
  readonly vaeDecoder: OnnxGraph;
  readonly vaeEncoder?: OnnxGraph;
  readonly clipText?: OnnxGraph;
}

/** What a network has to look like. A size of null may be anything; a set holds the alternatives. */
interface Expected {
  readonly inputs: Readonly<Record<string, { readonly types: readonly string[]; readonly dims?: Dims }>>;
  /** By name; without one the first output is meant. Others are not read. */
  readonly outputs: readonly { readonly name?: string; readonly dims: Dims }[];
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
  { family, configs }: { readonly family: FamilyName; readonly configs: NetworkConfigs },
  problems: BundleProblems,
): Promise<BundleGraphs | undefined> {
  const { textEncoders: roles, additionEmbedType } = FAMILIES[family];
  const latent = configs.vaeDecoder?.latentChannels ?? null;
  const hidden = hiddenSize(configs.textEncoders);
  const check = (file: string, expected: Expected) => checkGraph(files, file, expected, problems);

  const textEncoders: OnnxGraph[] = [];
  for (const [i, role] of roles.entries()) {
    const graph = await check(`${role.folder}/model.onnx`, expectedOfEncoder(role, configs.textEncoders[i]));
    if (graph) textEncoders.push(graph);
  }
  const pooled = pooledSize(roles, configs.textEncoders) ?? null;
  const unet = await check("unet/model.onnx", {
    inputs: {
      sample: { types: FLOATS, dims: [null, latent, null, null] },
      timestep: { types: [...FLOATS, ...INTEGERS] },
      encoder_hidden_states: { types: FLOATS, dims: [null, null, hidden] },
      ...(additionEmbedType === "text_time" && {
        text_embeds: { types: FLOATS, dims: [null, pooled] },
        time_ids: { types: FLOATS, dims: [null, TIME_IDS] },
      }),
    },
    outputs: [{ dims: [null, latent, null, null] }],
  });
  const vaeDecoder = await check("vae_decoder/model.onnx", {
    inputs: { latent_sample: { types: FLOATS, dims: [null, latent, null, null] } },
    outputs: [{ dims: [null, 3, null, null] }],
  });
  const vaeEncoder = await check("vae_encoder/model.onnx", {
    inputs: { sample: { types: FLOATS, dims: [null, 3, null, null] } },
    // Means, or means and logarithms of variances.
    outputs: [{ dims: [null, latent === null ? null : [latent, 2 * latent], null, null] }],
  });
  const clipText = await check(CLIP_TEXT, {
    inputs: { input_ids: { types: INTEGERS } },
    outputs: [{ name: POOLED_OUTPUT, dims: [null, null] }],
  });
  if (textEncoders.length < roles.length || unet === undefined || vaeDecoder === undefined) return undefined;
  return { textEncoders, unet, vaeDecoder, ...(vaeEncoder && { vaeEncoder }), ...(clipText && { clipText }) };
}

/** Null where a configuration is missing. */
function hiddenSize(textEncoders: NetworkConfigs["textEncoders"]): number | null {
  return textEncoders.reduce<number | null>(
    (sum, config) => (sum === null || config === undefined ? null : sum + config.hiddenSize),
    0,
  );
}

function expectedOfEncoder(role: TextEncoderRole, config: TextEncoderConfig | undefined): Expected {
  const pooled = { name: POOLED_OUTPUT, dims: [null, config?.pooledSize ?? null] };
  const hidden = config && { name: hiddenOutput(role, config), dims: [null, null, config.hiddenSize] };
  return {
    inputs: { input_ids: { types: INTEGERS } },
    outputs: [...(hidden ? [hidden] : []), ...(role.pooled ? [pooled] : [])],
  };
}

/** The text side of a CLIP pair, where a bundle ships one. */
export const CLIP_TEXT = "clip/text_model.onnx";

/** The embedding of a whole text, after its projection. */
export const POOLED_OUTPUT = "text_embeds";

/** Hidden state 0 is what the first layer takes, so the one before the last of `layers` has the number `layers - 1`. */
export function hiddenOutput({ layer }: TextEncoderRole, { layers }: TextEncoderConfig): string {
  return layer === "last" ? "last_hidden_state" : `hidden_states.${layers - 1}`;
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
    ...complaintsAboutOutputs(graph, expected),
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

function complaintsAboutOutputs(graph: OnnxGraph, { outputs }: Expected): string[] {
  const names = graph.outputs.map(({ name }) => name).join(", ");
  return outputs.flatMap(({ name, dims }) => {
    const found = name === undefined ? graph.outputs[0] : graph.outputs.find((output) => output.name === name);
    return found ? complaintsAboutDims("output", found, dims) : [`has no output "${name}" (its outputs: ${names})`];
  });
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
  const folder = dirname(files.pathOf(file));
  const complaint = await complaintAboutPlace(await realpath(folder), location);
  if (complaint !== undefined) return complaint;
  const part = relative(files.rootOf(file), posix.join(folder, location));
  if (!files.has(part)) return `is not among the parts that ${MANIFEST_FILE} lists, or is no good as one`;
  if (files.bytesOf(part) >= bytesMin) return undefined;
  return `is truncated: it has ${files.bytesOf(part)} bytes, the graph points to ${bytesMin}`;
}
