import type { DeviceSpec, NetworkFiles } from "../device/device.ts";
import type { Model } from "../models.ts";
import { DECODE_TILE_PIXELS, type DecodedImage } from "../stages/image-decode.ts";
import type { LatentDistribution } from "../stages/image-encode.ts";
import type { StepTime } from "../step-times.ts";
import type {
  DenoiseCommand,
  DenoiseData,
  DenoiseFiles,
  DenoiseReport,
  DenoiseResult,
  DenoiseWork,
} from "./denoise.thread.ts";
import type { ImageDecodeData, ImageDecodeWork } from "./image-decode.thread.ts";
import type { ImageEncodeData, ImageEncodeWork } from "./image-encode.thread.ts";
import type { OpenedNetwork } from "./model-networks.ts";
import { StageThread } from "./stage-thread.ts";
import type {
  TextEncodeData,
  TextEncodeFiles,
  TextEncodeResult,
  TextEncodeWork,
  TextVectorsWork,
} from "./text-encode.thread.ts";

/** Finished latents that may wait for the VAE before denoising finishes no more of them. A latent is small: a few hundred KB at most. */
const UNDECODED_MAX = 16;
/**
 * Latents in one run of a VAE decoder, on a GPU. On a CPU one: a picture alone fills the threads, and the first of a
 * batch would wait for the last.
 */
const DECODE_BATCH_MAX = 4;
/** Pictures that sharp makes into files while the VAE goes on: as many as libuv has threads for it. */
const ENCODING_MAX = 4;
/** Chunks of 77 tokens in one run of a text encoder. */
const CHUNKS_MAX = 16;
/** Embedded prompts kept: some 280 of SD 1.5's (77 x 768 floats, 240 KB), some 100 of SDXL's (77 x 2048). */
const KEPT_BYTES_MAX = 64 * 2 ** 20;

/** The stages, each in a thread of its own. */
export interface StageThreads {
  readonly textEncode: StageThread<TextEncodeWork, TextEncodeResult, never, never, TextEncodeFiles>;
  /** The same thread, for texts that nothing is drawn of. */
  readonly textVectors: Pick<StageThread<TextVectorsWork, readonly Float32Array[]>, "run">;
  readonly imageEncode: StageThread<ImageEncodeWork, LatentDistribution, never, never, NetworkFiles>;
  readonly denoise: StageThread<DenoiseWork, DenoiseResult, DenoiseCommand, DenoiseReport, DenoiseFiles>;
  readonly imageDecode: StageThread<ImageDecodeWork, DecodedImage, never, never, NetworkFiles>;
  /**
   * Opens a model's networks in all of them at once, beside what runs there.
   *
   * @throws AggregateError of ServingErrors: everything that could not be opened. What could is closed again.
   */
  openModel(model: Model, options: OpenModelOptions): Promise<OpenedNetwork>;
  /** Releases a model's networks. Nothing of the model is in any stage. */
  closeModel(id: string): Promise<void>;
  close(): Promise<void>;
}

export interface OpenModelOptions {
  /** Whether there is memory for the U-Net's narrow lanes. */
  readonly narrowLanes: boolean;
  /** Hears of each stage's network as it is open. */
  readonly onNetwork?: (stage: StageName) => void;
}

export type StageName = "textEncode" | "imageEncode" | "denoise" | "imageDecode";

export interface StageThreadsOptions {
  readonly device: DeviceSpec;
  readonly limits: {
    readonly queueMax: number;
    readonly pulledMax?: number;
    readonly stepBatchMax: number;
    readonly ageingMs: number;
    readonly numImagesMax: number;
    /** Pictures of more pixels are decoded in tiles. */
    readonly decodeTilePixels?: number;
  };
  /** What was learned of U-Net runs in earlier runs. */
  readonly stepTimes: readonly StepTime[];
  readonly onReport: (report: DenoiseReport) => void;
  readonly onFatal: (error: Error) => void;
}

/**
 * Starts them all; they hold no models yet.
 *
 * @throws AggregateError of everything that any of them could not open; the others are closed again.
 */
export async function openStageThreads(options: StageThreadsOptions): Promise<StageThreads> {
  const { device, onReport, onFatal } = options;
  const { queueMax, pulledMax = 0, stepBatchMax, ageingMs, numImagesMax } = options.limits;
  const { decodeTilePixels = DECODE_TILE_PIXELS } = options.limits;
  const textData: TextEncodeData = {
    device,
    limits: { waitingMax: queueMax + pulledMax, chunksMax: CHUNKS_MAX, keptBytesMax: KEPT_BYTES_MAX },
  };
  const encodeData: ImageEncodeData = { device, limits: { waitingMax: queueMax } };
  const denoiseData: DenoiseData = {
    device,
    limits: { jobsMax: queueMax * numImagesMax + pulledMax, stepBatchMax, ageingMs, undecodedMax: UNDECODED_MAX },
    stepTimes: options.stepTimes,
  };
  const decodeData: ImageDecodeData = {
    device,
    limits: {
      waitingMax: UNDECODED_MAX,
      batchMax: device.kind === "onnx" && device.provider === "cpu" ? 1 : DECODE_BATCH_MAX,
      encodingMax: ENCODING_MAX,
      wholePixelsMax: decodeTilePixels,
    },
  };

  const [textEncode, imageEncode, denoise, imageDecode] = await Promise.allSettled([
    StageThread.open<TextEncodeWork, TextEncodeResult, never, never, TextEncodeFiles>({
      module: new URL("./text-encode.thread.ts", import.meta.url),
      data: textData,
      onFatal,
    }),
    StageThread.open<ImageEncodeWork, LatentDistribution, never, never, NetworkFiles>({
      module: new URL("./image-encode.thread.ts", import.meta.url),
      data: encodeData,
      onFatal,
    }),
    StageThread.open<DenoiseWork, DenoiseResult, DenoiseCommand, DenoiseReport, DenoiseFiles>({
      module: new URL("./denoise.thread.ts", import.meta.url),
      data: denoiseData,
      onReport,
      onFatal,
    }),
    StageThread.open<ImageDecodeWork, DecodedImage, never, never, NetworkFiles>({
      module: new URL("./image-decode.thread.ts", import.meta.url),
      data: decodeData,
      onFatal,
    }),
  ]);
  if (
    textEncode.status === "fulfilled" &&
    imageEncode.status === "fulfilled" &&
    denoise.status === "fulfilled" &&
    imageDecode.status === "fulfilled"
  ) {
    const stages = {
      textEncode: textEncode.value,
      imageEncode: imageEncode.value,
      denoise: denoise.value,
      imageDecode: imageDecode.value,
    };
    return {
      ...stages,
      // It answers each kind of work with its own kind of result.
      textVectors: textEncode.value as unknown as StageThreads["textVectors"],
      openModel: (model, how) => openModel(stages, model, how),
      closeModel: (id) => closeModel(stages, id),
      close: () => closeAll(Object.values(stages)),
    };
  }
  const outcomes = [textEncode, imageEncode, denoise, imageDecode];
  await closeAll(outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : [])));
  throw new AggregateError(reasonsOf(outcomes));
}

type Stages = Pick<StageThreads, StageName>;

/** All at once: reading weights takes most of a load. */
async function openModel(
  stages: Stages,
  { bundle }: Model,
  { narrowLanes, onNetwork = () => {} }: OpenModelOptions,
): Promise<OpenedNetwork> {
  const files = networkFiles(bundle);
  const { textEncoders, clipText, textDigest, zeroEmptyNegative, scheduler } = bundle;
  const textFiles = { ...files, textEncoders, clipText, textDigest, zeroEmptyNegative };
  const opening = async (stage: StageName, opened: Promise<OpenedNetwork>) => {
    const network = await opened;
    onNetwork(stage);
    return network;
  };
  const outcomes = await Promise.allSettled([
    opening("textEncode", stages.textEncode.openModel(textFiles)),
    opening("imageEncode", stages.imageEncode.openModel(files)),
    opening("denoise", stages.denoise.openModel({ ...files, scheduler, narrowLanes })),
    opening("imageDecode", stages.imageDecode.openModel(files)),
  ]);
  const reasons = reasonsOf(outcomes);
  if (reasons.length > 0) {
    await closeModel(stages, bundle.id);
    throw new AggregateError(reasons);
  }
  const networks = outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
  return {
    weightsBytes: networks.reduce((sum, { weightsBytes }) => sum + weightsBytes, 0),
    notes: networks.flatMap(({ notes }) => notes),
  };
}

async function closeModel({ textEncode, imageEncode, denoise, imageDecode }: Stages, id: string): Promise<void> {
  await Promise.all([textEncode, imageEncode, denoise, imageDecode].map((stage) => stage.closeModel(id)));
}

async function closeAll(threads: readonly { close(): Promise<void> }[]): Promise<void> {
  await Promise.all(threads.map((thread) => thread.close()));
}

function reasonsOf(outcomes: readonly PromiseSettledResult<unknown>[]): unknown[] {
  return outcomes.flatMap((outcome) => (outcome.status === "rejected" ? [outcome.reason as unknown] : []));
}

function networkFiles(bundle: Model["bundle"]): NetworkFiles {
  const { id, manifest, latentChannels, textEncoders, unetPath, vaeDecoderPath, vaeEncoderPath } = bundle;
  return {
    model: id,
    family: manifest.family,
    latentChannels,
    textEncoders,
    unetPath,
    vaeDecoderPath,
    ...(vaeEncoderPath && { vaeEncoderPath }),
  };
}
