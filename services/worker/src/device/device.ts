import type { Unet } from "../stages/denoise.ts";
import type { VaeDecoder } from "../stages/image-decode.ts";
import type { VaeEncoder } from "../stages/image-encode.ts";
import type { TextEncoder } from "../stages/text-encode.ts";
import { openOnnxDevice } from "./onnx/onnx-device.ts";
import type { ProviderName } from "./onnx/providers.ts";
import type { SimulatedGpu } from "./simulated/gpu-figures.ts";
import { openSimulatedDevice } from "./simulated/simulated-device.ts";

/** What a stage's thread is told of the device: plain data, so that it crosses threads. */
export type DeviceSpec = OnnxDeviceSpec | SimulatedDeviceSpec;

export interface OnnxDeviceSpec {
  readonly kind: "onnx";
  readonly provider: ProviderName;
  /** CPU threads that one network may use; the others' share of it is the device's choice. */
  readonly threads: number;
  /** Narrow lanes of a U-Net at most; as many as there are threads where it is left out. Each holds the weights again. */
  readonly narrowLanesMax?: number;
}

/** A GPU that is not there: real stages, real timing, no arithmetic. */
export interface SimulatedDeviceSpec {
  readonly kind: "simulated";
  readonly gpu: SimulatedGpu;
  /** How many times faster than the GPU it runs; 1 where it is left out. Its name says so. */
  readonly speed?: number;
}

/** As receipts, the fleet and moved states name it: "cpu", "cuda", "simulated:a10". */
export function deviceName(spec: DeviceSpec): string {
  if (spec.kind === "onnx") return spec.provider;
  const { gpu, speed = 1 } = spec;
  return speed === 1 ? `simulated:${gpu}` : `simulated:${gpu}x${speed}`;
}

/** Where a bundle's networks lie, as absolute paths. */
export interface NetworkFiles {
  readonly model: string;
  /** As the manifest names it. */
  readonly family: string;
  readonly latentChannels: number;
  /** One, or SDXL's two. */
  readonly textEncoders: readonly TextEncoderFiles[];
  readonly unetPath: string;
  readonly vaeDecoderPath: string;
  readonly vaeEncoderPath?: string;
}

/** Where one text encoder lies, and which of its outputs are read. */
export interface TextEncoderFiles {
  readonly path: string;
  /** [rows, length, width]: "last_hidden_state", or a layer before it such as "hidden_states.11". */
  readonly hiddenOutput: string;
  /** [rows, width]: one embedding of the whole text; absent where the model has no use for one. */
  readonly pooledOutput?: string;
}

/** Holds memory on the device until released; never while a call runs. */
export interface Releasable {
  /** Bytes of the files that its sessions read or may yet read, once for each session: they share no weights. */
  readonly weightsBytes: number;
  release(): Promise<void>;
}

/**
 * Where step batches run. Calls on one lane follow one another; lanes run beside one another, except that `wide` and
 * `narrow` want the same cores: run either the one or the others.
 */
export interface UnetLanes {
  /** What somebody should know of how the graph is run, for the log; undefined where there is nothing. */
  readonly note?: string | undefined;
  /** Has all of the device, and is there from the start. */
  readonly wide: UnetLane;
  /**
   * One CPU thread each; empty until `openNarrow`, then it grows, lane by lane. Several of them make more rows a second
   * than `wide`, and each makes one row more slowly.
   */
  readonly narrow: readonly UnetLane[];
  /**
   * Largest difference of a prediction between a row alone, the row among others, and on a narrow lane, as measured beside
   * the first run of two rows; undefined before. 0 says that pictures do not depend on their batch mates.
   */
  readonly batchDifference: number | undefined;
  /** How many `narrow` will be: as many as there are threads, where there are several, or fewer if so configured; 0 on a GPU. */
  readonly narrowMax: number;
  /**
   * Opens the narrow lanes, beside whatever runs. Each takes as much memory as `wide`, and opening takes cores, so it is
   * for when there is work for several: a machine that draws one picture at a time never pays for them.
   * Further calls give the same promise, which settles when no more will come.
   *
   * @throws ServingError of the first lane that could not be opened; those that were stay.
   */
  openNarrow(): Promise<void>;
}

export interface UnetLane extends Unet {
  /** CPU threads that a run uses. On a GPU it says nothing. */
  readonly threads: number;
}

/**
 * Opens networks, each in threads of its own: opening and running never block the caller's.
 * All throw ServingError INVALID_BUNDLE naming the file, or DEVICE_UNAVAILABLE naming the provider.
 */
export interface Device {
  openTextEncoder(files: TextEncoderFiles): Promise<TextEncoder & Releasable>;
  openUnet(files: NetworkFiles): Promise<UnetLanes & Releasable>;
  openVaeDecoder(files: NetworkFiles): Promise<VaeDecoder & Releasable>;
  /** @throws ServingError INVALID_BUNDLE also where the bundle has none. */
  openVaeEncoder(files: NetworkFiles): Promise<VaeEncoder & Releasable>;
}

/** How many narrow lanes a U-Net may have there, each with weights of its own. */
export function narrowLanesOf(spec: DeviceSpec): number {
  if (spec.kind !== "onnx" || !severalThreads(spec)) return 0;
  return Math.min(spec.threads, spec.narrowLanesMax ?? spec.threads);
}

/** A VAE decoder has one session, and a second of one thread for when the U-Net runs beside it. */
export function decoderSessions(spec: DeviceSpec): number {
  return spec.kind === "onnx" && severalThreads(spec) ? 2 : 1;
}

/** How much of the device a decoder takes that runs beside the U-Net. */
export function narrowDecoderShare(spec: DeviceSpec): number {
  return spec.kind === "onnx" && severalThreads(spec) ? 1 / spec.threads : 1;
}

function severalThreads({ provider, threads }: OnnxDeviceSpec): boolean {
  return provider === "cpu" && threads > 1;
}

/** The same U-Net without narrow lanes: for where they would take memory that there is not. */
export function wideOnly(lanes: UnetLanes): UnetLanes {
  return {
    wide: lanes.wide,
    narrow: [],
    narrowMax: 0,
    get batchDifference() {
      return lanes.batchDifference;
    },
    openNarrow: async () => {},
  };
}

export function openDevice(spec: DeviceSpec): Device {
  return spec.kind === "simulated" ? openSimulatedDevice(spec) : openOnnxDevice(spec);
}
