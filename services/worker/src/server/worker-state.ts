import { type ResidentModel, ResidentModelSchema, type WorkerState, WorkerStateSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import type { Model } from "../models.ts";
import type { Pipeline } from "../pipeline.ts";
import { wireSampler } from "./wire.ts";

export interface WorkerIdentity {
  readonly id: string;
  /** "cpu", "cuda", ... */
  readonly device: string;
  readonly simulated: boolean;
}

/** The worker as it is now, for those that watch it. `pipeline` is undefined before it is warm. */
export function describeWorker(
  { id, device, simulated }: WorkerIdentity,
  sequence: bigint,
  pipeline: Pipeline | undefined,
  draining: boolean,
): WorkerState {
  const state = pipeline?.state;
  return create(WorkerStateSchema, {
    workerId: id,
    sequence,
    ready: pipeline !== undefined && !draining,
    draining,
    device,
    simulated,
    models: [...(pipeline?.models.values() ?? [])].map((model) =>
      describeModel(model, state?.stepMs.get(model.bundle.id) ?? 0),
    ),
    backlogInteractiveMs: state?.backlogMs.interactive ?? 0,
    backlogStandardMs: state?.backlogMs.standard ?? 0,
    backlogBulkMs: state?.backlogMs.bulk ?? 0,
    denoiseBusyRatio: state?.denoiseBusyRatio ?? 0,
    stepTimes: [...(state?.stepTimes ?? [])],
    requestsInFlight: state?.requestsInFlight ?? 0,
    requestsFree: draining ? 0 : (state?.requestsFree ?? 0),
    memoryUsedBytes: BigInt(process.memoryUsage.rss()),
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
  });
}
