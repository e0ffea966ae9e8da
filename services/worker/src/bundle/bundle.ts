import { readFile, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import { invariant, ServingError } from "@atelier/core";
import { parseSchedulerJson, readSchedulerConfig, type SchedulerConfig } from "@atelier/diffusion";
import { BundleFiles, parseObject } from "./bundle-files.ts";
import { type BundleGraphs, checkGraphs } from "./graphs.ts";
import { type BundleManifest, checkManifest, MANIFEST_FILE } from "./manifest.ts";
import { readNetworkConfigs } from "./network-configs.ts";
import { bundleDigest, checkParts, whyNot } from "./parts.ts";
import { BundleProblems, show } from "./problems.ts";
import { checkTokenizer } from "./tokenizer.ts";

/** A model folder that was read and found whole. Plain data: it may cross threads. */
export interface Bundle {
  /** The folder, absolute and free of symbolic links. */
  readonly dir: string;
  readonly id: string;
  /** "sha256:..." over the digests of all parts: two bundles with one digest make the same pictures. */
  readonly digest: string;
  readonly manifest: BundleManifest;
  readonly modelIndex: Readonly<Record<string, unknown>>;
  readonly scheduler: SchedulerConfig;
  /** A latent that the U-Net sees is `(vae latent - shiftFactor) * scalingFactor`. */
  readonly scalingFactor: number;
  readonly shiftFactor?: number;
  readonly latentChannels: number;
  /** Length of one token's embedding, for the text encoder and the U-Net alike. */
  readonly crossAttentionDim: number;
  /** In the order in which their hidden states are joined along the width. */
  readonly textEncoders: readonly BundleTextEncoder[];
  /** Names the text encoders and their tokenizers: with one such digest a prompt has one embedding. */
  readonly textDigest: string;
  /** Where nothing is to be kept out of the picture the U-Net sees zeros, not what an empty text is encoded to. */
  readonly zeroEmptyNegative: boolean;
  readonly unetPath: string;
  readonly vaeDecoderPath: string;
  readonly vaeEncoderPath?: string;
  /** What each network takes and gives, as its file says. */
  readonly graphs: BundleGraphs;
}

export interface BundleTextEncoder {
  readonly path: string;
  readonly tokenizerDir: string;
  /** The layer that the U-Net was trained on. */
  readonly hiddenOutput: string;
  /** The embedding of the whole text, where the U-Net takes one. */
  readonly pooledOutput?: string;
}

/** What every bundle has, and what must be covered by the manifest's digests. */
const REQUIRED_PARTS = [
  "model_index.json",
  "scheduler/scheduler_config.json",
  "text_encoder/config.json",
  "text_encoder/model.onnx",
  "unet/config.json",
  "unet/model.onnx",
  "vae_decoder/config.json",
  "vae_decoder/model.onnx",
] as const;

/**
 * Reads and checks a model folder: the diffusers/optimum ONNX layout and our `atelier.json`. No weights are loaded, so
 * what is wrong is known before anything is made or evicted.
 *
 * @throws ServingError INVALID_BUNDLE naming the bundle, each file at fault, and why.
 */
export async function readBundle(dir: string): Promise<Bundle> {
  const problems = new BundleProblems(dir);
  const manifest = await readManifest(dir, problems);
  problems.throwIfAny(); // Without a manifest nothing else can be judged.
  invariant(manifest, "a manifest without problems was read");

  const root = await realpath(dir);
  const { parts } = manifest;
  const files = new BundleFiles({ root, parts, good: await checkParts(root, parts, problems), problems });
  checkPresence(files, problems);
  const modelIndex = await readModelIndex(files, problems);
  const scheduler = await readScheduler(files, problems);
  const { textEncoder, unet, vaeDecoder } = await readNetworkConfigs(files, problems);
  await checkTokenizer(files, textEncoder?.vocabularySize, problems);
  const graphs = await checkGraphs(files, { textEncoder, unet, vaeDecoder }, problems);
  checkPreview(manifest, vaeDecoder?.latentChannels, problems);

  problems.throwIfAny();
  invariant(modelIndex && scheduler && unet && vaeDecoder, "what is missing was complained of");
  invariant(isComplete(graphs), "what is missing was complained of");
  return {
    dir: root,
    id: manifest.id,
    digest: bundleDigest(parts),
    manifest,
    modelIndex,
    scheduler,
    scalingFactor: vaeDecoder.scalingFactor,
    ...(vaeDecoder.shiftFactor === undefined ? {} : { shiftFactor: vaeDecoder.shiftFactor }),
    latentChannels: vaeDecoder.latentChannels,
    crossAttentionDim: unet.crossAttentionDim,
    textEncoders: [
      {
        path: join(root, "text_encoder/model.onnx"),
        tokenizerDir: join(root, "tokenizer"),
        hiddenOutput: "last_hidden_state",
      },
    ],
    textDigest: bundleDigest(parts),
    zeroEmptyNegative: false,
    unetPath: join(root, "unet/model.onnx"),
    vaeDecoderPath: join(root, "vae_decoder/model.onnx"),
    ...(graphs.vaeEncoder === undefined ? {} : { vaeEncoderPath: join(root, "vae_encoder/model.onnx") }),
    graphs,
  };
}

async function readManifest(dir: string, problems: BundleProblems): Promise<BundleManifest | undefined> {
  const text = await readManifestText(dir, problems);
  if (text === undefined) return undefined;
  const json = parseObject(text);
  if (typeof json === "string") {
    problems.add(MANIFEST_FILE, json);
    return undefined;
  }
  if (typeof json["id"] === "string") problems.id = json["id"].slice(0, 80);
  return checkManifest(json, problems);
}

async function readManifestText(dir: string, problems: BundleProblems): Promise<string | undefined> {
  try {
    if (!(await stat(dir)).isDirectory()) problems.add(".", "is not a folder");
    else return await readFile(join(dir, MANIFEST_FILE), "utf8");
  } catch (error) {
    const folderMissing = (error as NodeJS.ErrnoException).syscall === "stat";
    problems.add(folderMissing ? "." : MANIFEST_FILE, `cannot be read: ${whyNot(error)}`);
  }
  return undefined;
}

function checkPresence(files: BundleFiles, problems: BundleProblems): void {
  for (const file of REQUIRED_PARTS) {
    if (!files.names(file)) problems.add(file, `is needed, and ${MANIFEST_FILE} does not list it among its parts`);
  }
}

/** Pipelines that are made of these networks and no others. Inpainting and upscaling U-Nets have inputs of their own. */
const PIPELINE_CLASS = /^(?:Onnx|ORT)?(?:StableDiffusion|StableDiffusionImg2Img|LatentConsistencyModel)Pipeline$/;

async function readModelIndex(files: BundleFiles, problems: BundleProblems): Promise<Bundle["modelIndex"] | undefined> {
  const index = await files.json("model_index.json");
  if (index === undefined || PIPELINE_CLASS.test(String(index["_class_name"]))) return index;
  problems.add("model_index.json", `_class_name is ${show(index["_class_name"])}, a pipeline that is not served here`);
  return undefined;
}

async function readScheduler(files: BundleFiles, problems: BundleProblems): Promise<SchedulerConfig | undefined> {
  const file = "scheduler/scheduler_config.json";
  const text = await files.text(file);
  if (text === undefined) return undefined;
  try {
    return readSchedulerConfig(parseSchedulerJson(text));
  } catch (error) {
    if (!(error instanceof ServingError)) throw error;
    problems.add(file, error.detail.replace(/^scheduler_config\.json:? /, ""));
    return undefined;
  }
}

function checkPreview({ previewMatrix }: BundleManifest, channels: number | undefined, problems: BundleProblems): void {
  if (previewMatrix === undefined || channels === undefined || previewMatrix.length === channels) return;
  const reason = `previewMatrix has ${previewMatrix.length} rows, one for each latent channel would be ${channels}`;
  problems.add(MANIFEST_FILE, reason);
}

function isComplete(graphs: Partial<BundleGraphs>): graphs is BundleGraphs {
  return graphs.textEncoder !== undefined && graphs.unet !== undefined && graphs.vaeDecoder !== undefined;
}
