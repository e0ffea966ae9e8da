import { ServingError } from "@atelier/core";
import { ModelStatus, type ResidentModel, type ModelPlace as WirePlace, type WorkerState } from "@atelier/proto";
import { type SamplerName, samplerFromWire } from "../samplers.ts";
import type { StepCosts } from "./step-costs.ts";
import type { BacklogMs, JobsLeftMs } from "./worker-load.ts";

/** What the gateway last heard from a worker, and what it placed there itself. Up to one report old, so never exact. */
export interface WorkerView {
  /** host:port; names the worker within a gateway. */
  readonly address: string;
  /** The worker's own name; its address until it has said. */
  readonly id: string;
  /** Of workers that are alike and are scaled together. */
  readonly pool: string;
  /** True where no model runs: its pictures come from a device that is not there. */
  readonly simulated: boolean;
  /** Its state stream is open and not silent. A worker may be heard and take no requests. */
  readonly heard: boolean;
  readonly ready: boolean;
  readonly draining: boolean;
  /** Why it takes no requests; undefined when it does. */
  readonly notReadyReason: string | undefined;
  /** By model id. Kept when a worker is lost, so that its models are known as absent rather than unknown. */
  readonly models: ReadonlyMap<string, ModelView>;
  /** Requests that this gateway has placed there and that are not finished. */
  readonly inFlight: number;
  /** What it has to do, as of now: its last report less the time since, and what was placed there since. */
  readonly jobsLeftMs: JobsLeftMs;
  /** The same, summed. */
  readonly backlogMs: BacklogMs;
  /** Within a class it goes on with whoever has the least left; false: in the order of arrival, for all that is known. */
  readonly shortestFirst: boolean;
  /** Requests that it would take before it refuses. */
  readonly requestsFree: number;
  readonly costs: StepCosts;
}

/** Where a worker has a model, from the best to the worst place for a request of it. */
export const PLACE_STATUSES = ["resident", "loading", "on_disk"] as const;

export interface ModelPlace {
  readonly status: (typeof PLACE_STATUSES)[number];
  /** Of a load, 0..1; 1 where it is resident. */
  readonly progress: number;
  readonly weightsBytes: number;
  /** How long a whole load takes. */
  readonly loadMs: number;
}

export interface ModelView {
  readonly id: string;
  readonly place: ModelPlace;
  readonly name: string;
  readonly digest: string;
  readonly family: string;
  readonly license: string;
  readonly limits: {
    /** Pixels, of width and of height. */
    readonly sizeMin: number;
    readonly sizeMax: number;
    readonly sizeMultiple: number;
    /** Width times height. */
    readonly pixelsMax: number;
    readonly stepsMax: number;
    readonly numImagesMax: number;
  };
  readonly defaults: {
    readonly nativeWidth: number;
    readonly nativeHeight: number;
    readonly width: number;
    readonly height: number;
    readonly steps: number;
    readonly guidanceScale: number;
    readonly sampler: SamplerName;
  };
  /** Milliseconds of one step of one image at the native size; 0 where the worker has not learned it. */
  readonly stepMs: number;
  /** How larger pictures are made; undefined: in one pass as well. */
  readonly twoPasses: TwoPassRule | undefined;
}

/** A picture of more pixels is made at about the native pixel count first, and then refined at its own size. */
export interface TwoPassRule {
  readonly abovePixels: number;
  /** Share of the steps that the second pass makes over again. */
  readonly strength: number;
  /** The second pass's size over the first's, per side, at most; 0 is no limit. */
  readonly scaleMax: number;
}

/**
 * The models of a worker's report.
 *
 * @throws ServingError INTERNAL naming the model when its limits or defaults are missing: a worker that does
 * not say what it can do is not sent anything.
 */
export function modelsFromState(state: WorkerState): ReadonlyMap<string, ModelView> {
  const places = new Map(state.places.map((place) => [place.id, placeFromWire(place)]));
  return new Map(state.models.map((model) => [model.id, modelFromWire(model, places.get(model.id) ?? RESIDENT)]));
}

/** Of a worker that does not say: all that it serves is in memory. */
const RESIDENT: ModelPlace = { status: "resident", progress: 1, weightsBytes: 0, loadMs: 0 };

function placeFromWire({ status, progress, weightsBytes, loadMs }: WirePlace): ModelPlace {
  const named = status === ModelStatus.RESIDENT ? "resident" : status === ModelStatus.LOADING ? "loading" : "on_disk";
  return { status: named, progress, weightsBytes: Number(weightsBytes), loadMs };
}

function modelFromWire(model: ResidentModel, place: ModelPlace): ModelView {
  const { limits, defaults } = model;
  const sampler = defaults && samplerFromWire(defaults.sampler);
  if (limits === undefined || defaults === undefined || sampler === undefined || limits.sizeMultiple === 0) {
    throw new ServingError("INTERNAL", `model ${JSON.stringify(model.id)} came without limits or defaults`);
  }
  return {
    id: model.id,
    place,
    name: model.name,
    digest: model.digest,
    family: model.family,
    license: model.license,
    limits: {
      sizeMin: limits.sizeMin,
      sizeMax: limits.sizeMax,
      sizeMultiple: limits.sizeMultiple,
      pixelsMax: Number(limits.pixelsMax),
      stepsMax: limits.stepsMax,
      numImagesMax: limits.numImagesMax,
    },
    defaults: {
      nativeWidth: defaults.nativeWidth,
      nativeHeight: defaults.nativeHeight,
      width: defaults.width,
      height: defaults.height,
      steps: defaults.steps,
      guidanceScale: defaults.guidanceScale,
      sampler,
    },
    stepMs: model.stepMs,
    twoPasses: model.twoPasses && { ...model.twoPasses, abovePixels: Number(model.twoPasses.abovePixels) },
  };
}
