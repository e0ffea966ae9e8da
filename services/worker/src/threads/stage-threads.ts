import type { DeviceSpec } from "../device/device.ts";
import type { Model } from "../models.ts";
import type { EncodedImage } from "../stages/image-file.ts";
import type { DenoiseCommand, DenoiseData, DenoiseReport, DenoiseResult, DenoiseWork } from "./denoise.thread.ts";
import type { ImageDecodeData, ImageDecodeWork } from "./image-decode.thread.ts";
import { StageThread } from "./stage-thread.ts";
import type { TextEncodeData, TextEncodeResult, TextEncodeWork } from "./text-encode.thread.ts";

/** Finished latents that may wait for the VAE before denoising starts nothing new. A latent is small: a few hundred KB at most. */
const UNDECODED_MAX = 16;
/** Chunks of 77 tokens in one run of a text encoder. */
const CHUNKS_MAX = 16;
/** Embedded prompts kept: 77 x 768 floats are 240 KB, so about 60 MB of SD 1.5's. */
const KEPT_MAX = 256;

/** The three stages, each in a thread of its own. */
export interface StageThreads {
  readonly textEncode: StageThread<TextEncodeWork, TextEncodeResult>;
  readonly denoise: StageThread<DenoiseWork, DenoiseResult, DenoiseCommand, DenoiseReport>;
  readonly imageDecode: StageThread<ImageDecodeWork, EncodedImage>;
  close(): Promise<void>;
}

export interface StageThreadsOptions {
  readonly models: ReadonlyMap<string, Model>;
  readonly device: DeviceSpec;
  readonly limits: { readonly queueMax: number; readonly stepBatchMax: number };
  readonly onReport: (report: DenoiseReport) => void;
  readonly onFatal: (error: Error) => void;
}

/**
 * Opens all three at once: reading weights takes most of a start.
 *
 * @throws AggregateError of everything that any of them could not open; the others are closed again.
 */
export async function openStageThreads(options: StageThreadsOptions): Promise<StageThreads> {
  const { device, onReport, onFatal } = options;
  const models = [...options.models.values()].map(({ bundle, limits }) => ({ bundle, limits }));
  const imagesMax = options.limits.queueMax * Math.max(...models.map(({ limits }) => limits.numImagesMax));

  const textData: TextEncodeData = {
    device,
    models: models.map(({ bundle }) => ({
      ...networkFiles(bundle),
      tokenizerDir: bundle.tokenizerDir,
      digest: bundle.digest,
    })),
    limits: { waitingMax: options.limits.queueMax, chunksMax: CHUNKS_MAX, keptMax: KEPT_MAX },
  };
  const denoiseData: DenoiseData = {
    device,
    models: models.map(({ bundle }) => ({ ...networkFiles(bundle), scheduler: bundle.scheduler })),
    limits: { waitingMax: imagesMax, stepBatchMax: options.limits.stepBatchMax, undecodedMax: UNDECODED_MAX },
  };
  const decodeData: ImageDecodeData = {
    device,
    models: models.map(({ bundle }) => networkFiles(bundle)),
    // What denoising may leave undecoded, and the batch that was under way when it got there.
    limits: { waitingMax: UNDECODED_MAX + options.limits.stepBatchMax },
  };

  const [textEncode, denoise, imageDecode] = await Promise.allSettled([
    StageThread.open<TextEncodeWork, TextEncodeResult, never, never>({
      module: new URL("./text-encode.thread.ts", import.meta.url),
      data: textData,
      onFatal,
    }),
    StageThread.open<DenoiseWork, DenoiseResult, DenoiseCommand, DenoiseReport>({
      module: new URL("./denoise.thread.ts", import.meta.url),
      data: denoiseData,
      onReport,
      onFatal,
    }),
    StageThread.open<ImageDecodeWork, EncodedImage, never, never>({
      module: new URL("./image-decode.thread.ts", import.meta.url),
      data: decodeData,
      onFatal,
    }),
  ]);
  if (textEncode.status === "fulfilled" && denoise.status === "fulfilled" && imageDecode.status === "fulfilled") {
    const threads = { textEncode: textEncode.value, denoise: denoise.value, imageDecode: imageDecode.value };
    return { ...threads, close: () => closeAll(Object.values(threads)) };
  }
  const outcomes = [textEncode, denoise, imageDecode];
  await closeAll(outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : [])));
  const reasons = outcomes.flatMap((outcome) => (outcome.status === "rejected" ? [outcome.reason as unknown] : []));
  throw new AggregateError(reasons.flatMap((reason) => (reason instanceof AggregateError ? reason.errors : [reason])));
}

async function closeAll(threads: readonly { close(): Promise<void> }[]): Promise<void> {
  await Promise.all(threads.map((thread) => thread.close()));
}

function networkFiles({ id, textEncoderPath, unetPath, vaeDecoderPath }: Model["bundle"]) {
  return { model: id, textEncoderPath, unetPath, vaeDecoderPath };
}
