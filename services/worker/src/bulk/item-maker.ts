import type { DenoiseState, Receipt, WorkItem } from "@atelier/proto";

/** Makes pictures of items. What pulls them knows no more of it than this. */
export interface ItemMaker {
  /**
   * One picture. The same item gives the same bytes, from a state that an earlier delivery left or from noise; a state
   * that does not fit is left out.
   *
   * Rejects with a ServingError: the signal's reason, DRAINING where the worker leaves (`onState` was told where the
   * picture stands, if it was begun), or what kept it from being made.
   */
  make(item: WorkItem, how: Making): Promise<MadeItem>;
}

export interface Making {
  readonly signal: AbortSignal;
  readonly resume: DenoiseState | undefined;
  readonly onProgress: (progress: Steps) => void;
  readonly onState: (state: DenoiseState) => void;
}

/** 0 of 0 before the first step. At `total` of `total` the picture needs no more step batches. */
export interface Steps {
  readonly done: number;
  readonly total: number;
}

export interface MadeItem {
  readonly bytes: Uint8Array;
  readonly mediaType: string;
  /** Without the prompts, which the job has. */
  readonly receipt: Receipt;
}
