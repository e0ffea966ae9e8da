import {
  ModelPlaceSchema,
  ModelStatus,
  type ResidentModel,
  ResidentModelSchema,
  type ModelPlace as WirePlace,
  type WorkerState,
  WorkerStateSchema,
} from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import type { ModelPlace, ModelStatus as Status } from "../model-shelf.ts";
import type { Model } from "../models.ts";
import type { Pipeline } from "../pipeline.ts";
import { wireSampler } from "./wire.ts";

export interface WorkerIdentity {
  readonly id: string;
  readonly pool: string;
  /** "cpu", "cuda", ... */
  readonly device: string;
  readonly simulated: boolean;
}

/** The worker as it is now, for those that watch it. `pipeline` is undefined before its bundles are read. */
export function describeWorker(
  { id, pool, device, simulated }: WorkerIdentity,
  sequence: bigint,
  pipeline: Pipeline | undefined,
  { warm, draining }: { readonly warm: boolean; readonly draining: boolean },
): WorkerState {
  const state = pipeline?.state;
  const budgetBytes = state?.memoryBudgetBytes ?? 0;
  return create(WorkerStateSchema, {
    workerId: id,
    pool,
    sequence,
    ready: warm && !draining,
    draining,
    device,
    simulated,
    models: [...((warm ? pipeline?.models.values() : undefined) ?? [])].map((model) =>
      describeModel(model, state?.stepMs.get(model.bundle.id) ?? 0),
    ),
    places: state?.places.map(wirePlace) ?? [],
    backlogInteractiveMs: state?.backlogMs.interactive ?? 0,
    backlogStandardMs: state?.backlogMs.standard ?? 0,
    backlogBulkMs: state?.backlogMs.bulk ?? 0,
    jobsLeftInteractiveMs: [...(state?.jobsLeftMs.interactive ?? [])],
    jobsLeftStandardMs: [...(state?.jobsLeftMs.standard ?? [])],
    jobsLeftBulkMs: [...(state?.jobsLeftMs.bulk ?? [])],
    denoiseBusyRatio: state?.denoiseBusyRatio ?? 0,
    stepTimes: [...(state?.stepTimes ?? [])],
    rowTimes: [...(state?.rowTimes ?? [])],
    requestsInFlight: state?.requestsInFlight ?? 0,
    requestsFree: draining ? 0 : (state?.requestsFree ?? 0),
    memoryUsedBytes: BigInt(Math.round(state?.memoryUsedBytes ?? 0)),
    memoryBudgetBytes: Number.isFinite(budgetBytes) ? BigInt(Math.round(budgetBytes)) : 0n,
  });
}

const WIRE_STATUSES: Readonly<Record<Status, ModelStatus>> = {
  "on-disk": ModelStatus.ON_DISK,
  loading: ModelStatus.LOADING,
  resident: ModelStatus.RESIDENT,
  unloading: ModelStatus.UNLOADING,
};

export function wirePlace({ id, status, progress, weightsBytes, loadMs, error }: ModelPlace): WirePlace {
  return create(ModelPlaceSchema, {
    id,
    status: WIRE_STATUSES[status],
    progress,
    weightsBytes: BigInt(Math.round(weightsBytes)),
    loadMs,
    error: error?.detail ?? "",
  });
}

function describeModel({ bundle, limits }: Model, stepMs: number): ResidentModel {
  const { manifest } = bundle;
  return create(ResidentModelSchema, {
    id: bundle.id,
    name: manifest.name,
    digest: bundle.digest,
    family: manifest.family,
    license: manifest.license ?? "",
    limits: {
      sizeMin: limits.sizeMin,
      sizeMax: limits.sizeMax,
      sizeMultiple: limits.sizeMultiple,
      pixelsMax: BigInt(limits.pixelsMax),
      stepsMax: limits.stepsMax,
      numImagesMax: limits.numImagesMax,
    },
    defaults: {
      nativeWidth: manifest.nativeSize.width,
      nativeHeight: manifest.nativeSize.height,
      ...manifest.defaultSize,
      steps: manifest.defaultSteps,
      guidanceScale: manifest.defaultGuidanceScale,
      sampler: wireSampler(manifest.defaultSampler),
    },
    stepMs,
    ...(manifest.hiresFix && { twoPasses: twoPassesOf(manifest.hiresFix) }),
  });
}

function twoPassesOf({
  abovePixels,
  strength,
  latentScaleMax = 0,
}: NonNullable<Model["bundle"]["manifest"]["hiresFix"]>) {
  return { abovePixels: BigInt(abovePixels), strength, scaleMax: latentScaleMax };
}
