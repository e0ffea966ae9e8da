import { type Clock, newId, ServingError } from "@atelier/core";
import type { GenerationEvent } from "../image-request.ts";
import { jobTimestamp } from "./a1111.ts";

export interface CallOptions {
  readonly tenant: string;
  readonly taskId: string | undefined;
  readonly kind: "txt2img" | "img2img";
  readonly steps: number;
  /** Of each generation that the call takes, one after the other. */
  readonly imagesOfParts: readonly number[];
}

/**
 * The calls of this dialect that this gateway is in the middle of: what progress tells of, and interrupt ends. A call is
 * found by its task's id or as its tenant's newest, and never by another tenant. As many as callers that wait.
 */
export class A1111Calls {
  readonly #clock: Clock;
  readonly #calls = new Set<A1111Call>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  enter(options: CallOptions): A1111Call {
    const call = new A1111Call(options, this.#clock, () => this.#calls.delete(call));
    this.#calls.add(call);
    return call;
  }

  /** The newest call of the tenant, or its newest of that id. */
  find({ tenant, taskId }: { tenant: string; taskId: string | undefined }): A1111Call | undefined {
    const own = [...this.#calls].filter((call) => call.tenant === tenant);
    return own.findLast((call) => taskId === undefined || call.taskId === taskId);
  }
}

export class A1111Call {
  readonly tenant: string;
  readonly taskId: string;
  /** Ends with what it is doing. */
  readonly leave: () => void;

  readonly #options: CallOptions;
  readonly #clock: Clock;
  readonly #startedAtMs: number;
  #part = 0;
  #partAbort = new AbortController();
  #stepsDone = 0;
  #stepsTotal = 0;
  #preview: Uint8Array | undefined;
  #interrupted = false;
  #skipped = false;

  constructor(options: CallOptions, clock: Clock, leave: () => void) {
    this.#options = options;
    this.#clock = clock;
    this.#startedAtMs = clock.nowMs();
    this.tenant = options.tenant;
    this.taskId = options.taskId ?? newId("task");
    this.leave = leave;
  }

  get interrupted(): boolean {
    return this.#interrupted;
  }

  /** Whether the part that runs was taken back, alone or with all. */
  get partGivenUp(): boolean {
    return this.#partAbort.signal.aborted;
  }

  /** The next part begins; aborted, with a ServingError, when it is taken back. */
  begin(part: number): AbortSignal {
    this.#part = part;
    this.#partAbort = new AbortController();
    this.#stepsDone = 0;
    this.#stepsTotal = 0;
    this.#skipped = false;
    return this.#partAbort.signal;
  }

  heard(event: GenerationEvent): void {
    if (event.type === "accepted") this.#stepsTotal = event.stepsTotal;
    if (event.type === "progress") {
      this.#stepsDone = event.stepsDone;
      this.#stepsTotal = event.stepsTotal;
    }
    if (event.type === "preview") this.#preview = event.data;
  }

  /** What was finished is answered; the rest is taken back. */
  interrupt(): void {
    this.#interrupted = true;
    this.#partAbort.abort(new ServingError("CANCELLED", "the call was interrupted"));
  }

  /** The part that runs is taken back, and the next one begun. */
  skip(): void {
    this.#skipped = true;
    this.#partAbort.abort(new ServingError("CANCELLED", "this part of the call was skipped"));
  }

  /** 0..1, seconds, and the state as the web UI's own. Source: stable-diffusion-webui's modules/shared_state.py. */
  progress({ image }: { image: boolean }): A1111Progress {
    const { imagesOfParts, kind, steps } = this.#options;
    const images = sum(imagesOfParts);
    const share = this.#stepsTotal === 0 ? 0 : this.#stepsDone / this.#stepsTotal;
    const done = (sum(imagesOfParts.slice(0, this.#part)) + share * imagesOfParts[this.#part]!) / images;
    const elapsedS = (this.#clock.nowMs() - this.#startedAtMs) / 1_000;
    return {
      progress: Math.min(done, 1),
      eta_relative: done === 0 ? 0 : elapsedS / done - elapsedS,
      state: {
        skipped: this.#skipped,
        interrupted: this.#interrupted,
        stopping_generation: false,
        job: kind,
        job_count: imagesOfParts.length,
        job_no: this.#part,
        job_timestamp: jobTimestamp(this.#startedAtMs),
        // All pictures of a part go through their steps together.
        sampling_step: Math.floor(share * steps),
        sampling_steps: steps,
        task_id: this.taskId,
      },
      current_image: image && this.#preview ? Buffer.from(this.#preview).toString("base64") : null,
      textinfo: null,
    };
  }
}

interface A1111Progress {
  /** 0..1 */
  readonly progress: number;
  /** Seconds. */
  readonly eta_relative: number;
  readonly state: {
    readonly skipped: boolean;
    readonly interrupted: boolean;
    readonly stopping_generation: boolean;
    readonly job: string;
    readonly job_count: number;
    readonly job_no: number;
    readonly job_timestamp: string;
    readonly sampling_step: number;
    readonly sampling_steps: number;
    readonly task_id: string;
  };
  /** Base64. */
  readonly current_image: string | null;
  readonly textinfo: string | null;
}

/** Where nothing runs. */
export function idleProgress(atMs: number): A1111Progress {
  return {
    progress: 0,
    eta_relative: 0,
    state: {
      skipped: false,
      interrupted: false,
      stopping_generation: false,
      job: "",
      job_count: 0,
      job_no: 0,
      job_timestamp: jobTimestamp(atMs),
      sampling_step: 0,
      sampling_steps: 0,
      task_id: "",
    },
    current_image: null,
    textinfo: null,
  };
}

const sum = (numbers: readonly number[]) => numbers.reduce((total, number) => total + number, 0);
