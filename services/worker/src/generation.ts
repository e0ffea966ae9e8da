import type { Deadline } from "@atelier/core";
import type { Span } from "@atelier/telemetry";
import type { MovedImage } from "./denoise-state/denoise-state.ts";
import type { HiresFix } from "./phases.ts";
import type { EncodedImage } from "./stages/image-file.ts";

export type Stage = "text_encode" | "denoise" | "image_decode";

/** How a request is made to stop, and where it says how it is getting on. */
export interface GenerationCall {
  /** Its reason, a ServingError, is what the request fails with. */
  readonly signal: AbortSignal;
  readonly deadline: Deadline;
  /** The worker fetched it by itself: it takes none of the places that others send requests to. */
  readonly pulled?: boolean;
  readonly onEvent: (event: GenerationEvent) => void;
  /** The span that the stages' spans are parts of; absent: nothing is recorded. */
  readonly span?: Span;
}

export type GenerationEvent =
  | { readonly type: "accepted"; readonly backlogMs: number; readonly stepsTotal: number }
  | {
      readonly type: "progress";
      readonly stage: Stage;
      readonly imageIndex: number;
      readonly stepsDone: number;
      /** A PNG of the image so far, where one was wanted with this step. */
      readonly preview?: Uint8Array;
    }
  /** An image as it stands: to be kept in case this worker is lost, or, before DRAINING, to be finished elsewhere. */
  | { readonly type: "checkpoint"; readonly imageIndex: number; readonly image: MovedImage }
  | { readonly type: "image"; readonly imageIndex: number; readonly seed: bigint; readonly image: EncodedImage };

export interface GenerationOutcome {
  readonly modelDigest: string;
  readonly hiresFix: HiresFix | undefined;
  readonly promptChunks: number;
  /** Whether the VAE decoded in tiles. */
  readonly tiledDecode: boolean;
  /** By how much a prediction may depend on its batch mates; 0: not at all. */
  readonly batchDifference: number;
  /** Both prompts were embedded before: the text encoder did not run. */
  readonly embeddingsCached: boolean;
  /** How often the images gave way to more urgent work, together. */
  readonly preemptions: number;
  /** Milliseconds of the whole device that its images took here, waiting not included. */
  readonly deviceMs: number;
  readonly times: GenerationTimes;
  /** For each image that came from elsewhere: the step of the whole generation at which it went on here. */
  readonly resumedAtSteps: readonly number[];
  /** Where the images began from another generation's latent: the steps that each left out, and that latent's digest. */
  readonly reused: { readonly steps: number; readonly digest: string } | undefined;
}

/** Wall milliseconds from stage to stage; `queueMs` is how much of them passed in waiting for the first two stages. */
export interface GenerationTimes {
  readonly queueMs: number;
  readonly textEncodeMs: number;
  readonly denoiseMs: number;
  readonly imageDecodeMs: number;
}
