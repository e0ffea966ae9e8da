import { ServingError } from "@atelier/core";
import type { DenoiseState, GenerateResponse, Receipt } from "@atelier/proto";
import type { MakeLimits } from "../generations/ports.ts";
import type { GeneratedPicture, Generation, ImageRequest } from "../image-request.ts";
import { passingFromWire, pictureFromWire, stageFromWire } from "../wire.ts";
import type { ByteBudget } from "./byte-budget.ts";
import { mergeReceipts } from "./merge-receipts.ts";
import { ProgressTold } from "./progress-told.ts";
import { indexesOf, type Slice, slicesOf } from "./slice.ts";

/** What a picture's making depends on beside the request: pictures and states of one maker only go together. */
export type Maker = string;

interface Kept<Value> {
  readonly value: Value;
  readonly maker: Maker;
}

/** States of one call, together: a message holds 64 MiB, and a picture to start from is in it as well. */
const RESUME_BYTES_MAX = 40 * 1024 * 1024;

/**
 * What a request has come to so far, over all attempts: its finished pictures, and where the others stand. Each picture
 * and state that comes is the caller's or the next attempt's to use, whichever attempt it is from.
 */
export class Gathering {
  readonly #request: ImageRequest;
  readonly #told: ProgressTold;
  readonly #onCheckpoint: MakeLimits["onCheckpoint"];
  readonly #bytes: ByteBudget;
  readonly #pictures: (Kept<GeneratedPicture> | undefined)[];
  readonly #states: (Kept<DenoiseState> | undefined)[];
  readonly #receipts = new Map<Slice, Receipt | undefined>();
  readonly #workerIds: string[] = [];

  /** `bytes` limits what states are kept, over all requests; a state that does not fit leaves the one before in place. */
  constructor(request: ImageRequest, { onEvent, onCheckpoint }: MakeLimits, bytes: ByteBudget) {
    this.#request = request;
    this.#told = new ProgressTold(request.numImages, onEvent);
    this.#onCheckpoint = onCheckpoint;
    this.#bytes = bytes;
    this.#pictures = Array.from({ length: request.numImages });
    this.#states = Array.from({ length: request.numImages });
  }

  /** All of it, to begin with. */
  whole(): Slice {
    const slice = { first: 0, count: this.#request.numImages };
    this.#told.split(undefined, [slice]);
    return slice;
  }

  /** Some worker has taken it: from now on it is not to be lost for want of room. */
  get accepted(): boolean {
    return this.#told.begun;
  }

  called(workerId: string): void {
    this.#workerIds.push(workerId);
  }

  /** An event of the call that makes `slice`. */
  take(slice: Slice, maker: Maker, { event }: GenerateResponse): void {
    switch (event.case) {
      case "accepted":
        this.#told.accepted(slice, event.value.stepsTotal, this.#request);
        return;
      case "progress": {
        const { stepsDone, preview } = event.value;
        const imageIndex = slice.first + event.value.imageIndex;
        this.#told.progress(slice, { stage: stageFromWire(event.value.stage), stepsDone, imageIndex, preview });
        return;
      }
      case "checkpoint":
        if (event.value.state !== undefined) this.#takeState(slice, maker, event.value.state);
        return;
      case "image": {
        const { imageIndex } = event.value;
        if (imageIndex < slice.count) {
          this.#pictures[slice.first + imageIndex] ??= { value: pictureFromWire(event.value), maker };
        }
        return;
      }
      case "completed":
        if (!this.#receipts.has(slice)) this.#receipts.set(slice, event.value.receipt);
    }
  }

  complete(slice: Slice): boolean {
    return this.#receipts.has(slice) && this.#unfinished(slice).length === 0;
  }

  /** What the call that made `slice` left out, for people; undefined where it left nothing out. */
  missingText(slice: Slice): string | undefined {
    if (!this.#receipts.has(slice)) return "no receipt";
    const missing = this.#unfinished(slice).length;
    return missing === 0 ? undefined : `${slice.count - missing} of ${slice.count} images`;
  }

  /**
   * What is left of a slice whose call failed. Where only its receipt is missing the last picture is asked for again,
   * which goes on from its last checkpoint: nothing else says how the pictures were made.
   */
  rest(slice: Slice): readonly Slice[] {
    const unfinished = this.#unfinished(slice);
    const indexes = unfinished.length > 0 ? unfinished : [slice.first + slice.count - 1];
    const slices = slicesOf(indexes, (index, { first, count }) => {
      const together = indexesOf({ first, count: count + 1 });
      return together.reduce((sum, i) => sum + bytesOf(this.#states[i]?.value), 0) > RESUME_BYTES_MAX && index > first;
    });
    this.#told.split(slice, slices);
    return slices;
  }

  /** Where the pictures of `slice` stand, as far as it is known and `maker` can go on from there. */
  statesOf(slice: Slice, maker: Maker): readonly DenoiseState[] {
    return indexesOf(slice).flatMap((index) => {
      const kept = this.#states[index];
      return kept?.maker === maker ? [kept.value] : [];
    });
  }

  /** The pictures of `slice` begin from noise again. */
  forgetStates(slice: Slice): void {
    for (const index of indexesOf(slice)) this.#keep(index, undefined);
  }

  /**
   * @throws ServingError WORKER_LOST where workers with different models made its pictures, INTERNAL for a receipt that is
   * incomplete.
   */
  finish(): Generation {
    const pictures = this.#pictures.flatMap((kept) => (kept === undefined ? [] : [kept.value]));
    const makers = new Set(this.#pictures.map((kept) => kept?.maker));
    if (makers.size > 1) {
      const message = `the model ${this.#request.model} changed while a lost worker's pictures were made anew; the request can be sent again`;
      throw new ServingError("WORKER_LOST", message);
    }
    const slices = [...this.#receipts.keys()].sort((a, b) => a.first - b.first);
    const receipts = slices.map((slice) => this.#receipts.get(slice));
    return { pictures, receipt: mergeReceipts(this.#request, receipts, this.#workerIds) };
  }

  /** Lets go of all states. */
  close(): void {
    this.forgetStates({ first: 0, count: this.#request.numImages });
  }

  #unfinished(slice: Slice): readonly number[] {
    return indexesOf(slice).filter((index) => this.#pictures[index] === undefined);
  }

  #takeState(slice: Slice, maker: Maker, state: DenoiseState): void {
    if (state.imageIndex >= slice.count) return;
    const index = slice.first + state.imageIndex;
    const before = this.#states[index];
    // Of two attempts side by side the one that is ahead counts.
    if (before === undefined || before.maker !== maker || isAhead(state, before.value)) {
      this.#keep(index, { value: state, maker });
    }
    this.#onCheckpoint?.(passingFromWire(state, index));
  }

  #keep(index: number, kept: Kept<DenoiseState> | undefined): void {
    if (!this.#bytes.replace(bytesOf(this.#states[index]?.value), bytesOf(kept?.value))) return;
    this.#states[index] = kept;
  }
}

function isAhead(a: DenoiseState, b: DenoiseState): boolean {
  return a.phase === b.phase ? a.stepIndex > b.stepIndex : a.phase > b.phase;
}

function bytesOf(state: DenoiseState | undefined): number {
  return state === undefined ? 0 : state.history.reduce((sum, array) => sum + array.length, state.latent.length);
}
