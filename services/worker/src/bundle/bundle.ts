import { readFile, realpath, stat } from "node:fs/promises";
import { join } from "node:path";
import { invariant, ServingError } from "@atelier/core";
import { parseSchedulerJson, readSchedulerConfig, type SchedulerConfig } from "@atelier/diffusion";
import { borrowParts, partsOfFolders } from "./borrowed-parts.ts";
import { BundleFiles, parseObject } from "./bundle-files.ts";
import { FAMILIES, type FamilyName, type TextEncoderRole } from "./families.ts";
import { type BundleGraphs, CLIP_TEXT, checkGraphs, hiddenOutput, POOLED_OUTPUT } from "./graphs.ts";
import { type BundleManifest, checkManifest, MANIFEST_FILE } from "./manifest.ts";
import { pooledSize, readNetworkConfigs, type TextEncoderConfig, TIME_IDS } from "./network-configs.ts";
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
  /** Places of a latent along the side of a tile, where the VAE decodes in tiles. */
  readonly decodeTile: number;
  /** Length of one token's embedding, for the text encoder and the U-Net alike. */
  readonly crossAttentionDim: number;
  /** In the order in which their hidden states are joined along the width. */
  readonly textEncoders: readonly BundleTextEncoder[];
  /** Names the text encoders and their tokenizers: with one such digest a prompt has one embedding. */
  readonly textDigest: string;
  /** Where nothing is to be kept out of the picture the U-Net sees zeros, not what an empty text is encoded to. */
  readonly zeroEmptyNegative: boolean;
  /** The text side of a CLIP pair that lies in `clip/`: it tells how alike two texts are, and draws nothing. */
  readonly clipText?: BundleTextEncoder;
  readonly unetPath: string;
  /** What the U-Net takes for each row besides its sample, timestep and text, by name, with the length of each. */
  readonly unetExtras: Readonly<Record<string, number>>;
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

/** What every bundle has besides text encoders, and what must be covered by the manifest's digests. */
const REQUIRED_PARTS = [
  "model_index.json",
  "scheduler/scheduler_config.json",
  "unet/config.json",
  "unet/model.onnx",
  "vae_decoder/config.json",
  "vae_decoder/model.onnx",
] as const;

export interface ReadBundleOptions {
  /** Folders of other bundles, which may lend parts; those beside the bundle may as well. */
  readonly lenderDirs?: readonly string[];
}

/**
 * Reads and checks a model folder: the diffusers/optimum ONNX layout and our `atelier.json`. No weights are loaded, so
 * what is wrong is known before anything is made or evicted.
 *
 * @throws ServingError INVALID_BUNDLE naming the bundle, each file at fault, and why.
 */
export async function readBundle(dir: string, { lenderDirs = [] }: ReadBundleOptions = {}): Promise<Bundle> {
  const problems = new BundleProblems(dir);
  const manifest = await readManifest(dir, problems);
  problems.throwIfAny(); // Without a manifest nothing else can be judged.
  invariant(manifest, "a manifest without problems was read");

  const root = await realpath(dir);
  const { parts, family } = manifest;
  const { textEncoders: roles } = FAMILIES[family];
  const own = { root, parts, good: await checkParts(root, parts, problems) };
  const before = problems.count;
  const borrowed = await borrowParts(manifest, { root, lenderDirs }, problems);
  if (problems.count > before) problems.throwIfAny(); // What was to be borrowed would be missed over and over.
  const files = new BundleFiles({ own, borrowed, problems });
  checkPresence(files, roles, problems);
  const modelIndex = await readModelIndex(files, family, problems);
  const scheduler = await readScheduler(files, problems);
  const configs = await readNetworkConfigs(files, family, problems);
  for (const [i, { tokenizer: folder }] of roles.entries()) {
    await checkTokenizer(files, { folder, vocabularySize: configs.textEncoders[i]?.vocabularySize }, problems);
  }
  const graphs = await checkGraphs(files, { family, configs }, problems);
  const { textEncoders, unet, vaeDecoder } = configs;
  checkPreview(manifest, vaeDecoder?.latentChannels, problems);
  await checkClipText(files, textEncoders[0]?.vocabularySize, problems);

  problems.throwIfAny();
  invariant(modelIndex && scheduler && unet && vaeDecoder && graphs, "what is missing was complained of");
  const pooled = pooledSize(roles, textEncoders);
  const textFolders = roles.flatMap(({ folder, tokenizer }) => [folder, tokenizer]);
  return {
    dir: root,
    id: manifest.id,
    digest: bundleDigest(files.parts),
    manifest,
    modelIndex,
    scheduler,
    scalingFactor: vaeDecoder.scalingFactor,
    ...(vaeDecoder.shiftFactor === undefined ? {} : { shiftFactor: vaeDecoder.shiftFactor }),
    latentChannels: vaeDecoder.latentChannels,
    decodeTile: vaeDecoder.decodeTile,
    crossAttentionDim: unet.crossAttentionDim,
    textEncoders: roles.map((role, i) => bundleTextEncoder(files, role, textEncoders[i])),
    textDigest: bundleDigest(partsOfFolders(files.parts, textFolders)),
    // diffusers' own default for the pipelines that have the choice, which are those of two encoders.
    zeroEmptyNegative: roles.length > 1 && modelIndex["force_zeros_for_empty_prompt"] !== false,
    ...(graphs.clipText === undefined ? {} : { clipText: clipTextOf(files, roles[0]!) }),
    unetPath: files.pathOf("unet/model.onnx"),
    unetExtras: pooled === undefined ? {} : { text_embeds: pooled, time_ids: TIME_IDS },
    vaeDecoderPath: files.pathOf("vae_decoder/model.onnx"),
    ...(graphs.vaeEncoder === undefined ? {} : { vaeEncoderPath: files.pathOf("vae_encoder/model.onnx") }),
    graphs,
  };
}

function bundleTextEncoder(
  files: BundleFiles,
  role: TextEncoderRole,
  config: TextEncoderConfig | undefined,
): BundleTextEncoder {
  invariant(config, "what is missing was complained of");
  return {
    path: files.pathOf(`${role.folder}/model.onnx`),
    tokenizerDir: files.pathOf(role.tokenizer),
    hiddenOutput: hiddenOutput(role, config),
    ...(role.pooled ? { pooledOutput: POOLED_OUTPUT } : {}),
  };
}

function clipTextOf(files: BundleFiles, { tokenizer }: TextEncoderRole): BundleTextEncoder {
  const [path, tokenizerDir] = [files.pathOf(CLIP_TEXT), files.pathOf(tokenizer)];
  return { path, tokenizerDir, hiddenOutput: POOLED_OUTPUT };
}

/** It reads the tokens of the bundle's own tokenizer: one that it has no row for would fail in the middle of a run. */
async function checkClipText(files: BundleFiles, vocabularySize: number | undefined, problems: BundleProblems) {
  if (!files.has(CLIP_TEXT) || vocabularySize === undefined) return;
  const text = (await files.json("clip/config.json"))?.["text_config"] as { vocab_size?: unknown } | undefined;
  const size = text?.vocab_size;
  if (typeof size === "number" && size >= vocabularySize) return;
  problems.add(
    "clip/config.json",
    `text_config.vocab_size is ${show(size)}, the tokenizer has ${vocabularySize} tokens`,
  );
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

function checkPresence(files: BundleFiles, roles: readonly TextEncoderRole[], problems: BundleProblems): void {
  const encoders = roles.flatMap(({ folder }) => [`${folder}/config.json`, `${folder}/model.onnx`]);
  for (const file of [...REQUIRED_PARTS, ...encoders]) {
    if (!files.names(file)) problems.add(file, `is needed, and ${MANIFEST_FILE} does not list it among its parts`);
  }
}

async function readModelIndex(
  files: BundleFiles,
  family: FamilyName,
  problems: BundleProblems,
): Promise<Bundle["modelIndex"] | undefined> {
  const index = await files.json("model_index.json");
  if (index === undefined || FAMILIES[family].pipelineClass.test(String(index["_class_name"]))) return index;
  const name = show(index["_class_name"]);
  problems.add("model_index.json", `_class_name is ${name}, a pipeline that is not of the family "${family}"`);
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
