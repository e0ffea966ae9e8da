import { ServingError } from "@atelier/core";
import type { StepJob } from "../denoise.ts";
import type { PriorityClass } from "../order/service-order.ts";

/** A job of no arithmetic. */
export interface FakeJob extends StepJob {
  /** The first number of each row's prediction that it was given, step by step. */
  readonly received: number[][];
  readonly stepsDone: number;
  readonly preemptions: number;
  readonly deviceMs: number;
  end(error: ServingError): void;
}

export interface FakeJobOptions {
  readonly model?: string;
  readonly side?: number;
  readonly sequenceLength?: number;
  readonly extraInputs?: string;
  readonly steps?: number;
  readonly rows?: number;
  readonly of?: PriorityClass;
  readonly tenant?: string;
  readonly weight?: number;
  readonly finishAtMs?: number;
  /** The step at which its latent becomes NaN. */
  readonly failsAt?: number;
  /** The step from which on it is of twice the side. */
  readonly enlargesAt?: number;
}

export function fakeJob(id: string, options: FakeJobOptions = {}): FakeJob {
  const { model = "tiny", side = 32, sequenceLength = 77, extraInputs = "", steps = 1, rows = 2 } = options;
  const { failsAt, enlargesAt = Infinity, of = "standard", tenant = "", weight = 1, finishAtMs } = options;
  const shapeOf = (each: number) => ({ channels: 4, height: each, width: each });
  let stepsDone = 0;
  let preemptions = 0;
  let deviceMs = 0;
  let ended: ServingError | undefined;
  const received: number[][] = [];
  return {
    id,
    model,
    sequenceLength,
    extraInputs,
    rowCount: rows,
    order: { priorityClass: of, tenant, weight, finishAtMs },
    received,
    get shape() {
      return shapeOf(stepsDone >= enlargesAt ? 2 * side : side);
    },
    get passesLeft() {
      const small = Math.max(0, Math.min(steps, enlargesAt) - stepsDone);
      const large = steps - stepsDone - small;
      return [
        { shape: shapeOf(side), steps: small },
        { shape: shapeOf(2 * side), steps: large },
      ].filter((pass) => pass.steps > 0);
    },
    get ended() {
      return ended;
    },
    get done() {
      return stepsDone === steps;
    },
    get stepsDone() {
      return stepsDone;
    },
    get preemptions() {
      return preemptions;
    },
    get deviceMs() {
      return deviceMs;
    },
    rows: () => Array.from({ length: rows }, () => ({ sample: EMPTY, timestep: 0, conditioning: EMPTY })),
    advance(predictions) {
      if (stepsDone === failsAt) throw new ServingError("NUMERIC_FAILURE", "NaN");
      received.push(predictions.map((prediction) => prediction[0]!));
      stepsDone += 1;
    },
    preempted: () => {
      preemptions += 1;
    },
    used: (ms) => {
      deviceMs += ms;
    },
    end: (error) => {
      ended = error;
    },
  };
}

const EMPTY = new Float32Array();
