import { Deadline, systemClock } from "@atelier/core";
import type { LatentShape, SchedulerConfig } from "@atelier/diffusion";
import { type DeviceSpec, type NetworkFiles, openDevice } from "../device/device.ts";
import { type PlanKey, Plans } from "../plans.ts";
import { type DenoiseLimits, DenoiseStage, type Unet } from "../stages/denoise.ts";
import {
  type Conditioning,
  DenoiseJob,
  type Prediction,
  type RefinePhase,
  type StartImage,
} from "../stages/denoise-job.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface DenoiseData {
  readonly device: DeviceSpec;
  readonly limits: DenoiseLimits;
}

export interface DenoiseFiles extends NetworkFiles {
  readonly scheduler: SchedulerConfig;
}

export interface DenoiseWork {
  readonly model: string;
  readonly plan: PlanKey;
  readonly shape: LatentShape;
  readonly start: StartImage | undefined;
  readonly refine: RefinePhase | undefined;
  /** Its arrays are over shared memory: the images of a request read the same. */
  readonly conditioning: Conditioning;
  readonly guidanceScale: number;
  readonly seed: bigint;
  readonly deadlineAtMs: number;
  readonly previewEverySteps: number;
}

export interface DenoiseResult {
  readonly latent: Float32Array<ArrayBuffer>;
  /** When its first step began, by the system clock. */
  readonly startedAtMs: number;
  /** As `UnetLanes` tells it. */
  readonly batchDifference: number;
}

/** Image decode has taken this many finished latents. */
export type DenoiseCommand = { readonly taken: number };

/** One U-Net run. */
export interface DenoiseReport {
  readonly model: string;
  readonly shape: LatentShape;
  readonly rows: number;
  readonly ms: number;
  readonly waiting: number;
  readonly steps: readonly { readonly id: string; readonly stepsDone: number; readonly preview?: Prediction }[];
}

await hostStage(openDenoise);

function openDenoise(
  { device, limits }: DenoiseData,
  reply: Reply<DenoiseResult, DenoiseReport>,
): HostedStage<DenoiseWork, DenoiseCommand, DenoiseFiles> {
  const opener = openDevice(device);
  const models = new ModelNetworks(async ({ scheduler, ...files }: DenoiseFiles) => {
    const unet = await opener.openUnet(files);
    return {
      unet,
      plans: new Plans(scheduler),
      weightsBytes: unet.weightsBytes,
      release: () => unet.release(),
    };
  });
  const jobs = new Map<string, { job: DenoiseJob; startedAtMs: number | undefined }>();
  const unet: Unet = { predictNoise: (batch) => models.get(batch.model).unet.wide.predictNoise(batch) };
  const stage = new DenoiseStage<DenoiseJob>(unet, limits);

  return {
    openModel: (files) => models.open(files),
    closeModel: (model) => models.close(model),
    enqueue(id, work) {
      const plan = models.get(work.model).plans.get(work.plan);
      const deadline = new Deadline(systemClock, work.deadlineAtMs);
      const job = new DenoiseJob({ ...work, id, plan, deadline });
      stage.enqueue(job);
      jobs.set(id, { job, startedAtMs: undefined });
    },
    cancel(id) {
      jobs.get(id)?.job.cancel();
    },
    command({ taken }) {
      stage.taken(taken);
    },
    get busy() {
      return stage.busy;
    },
    async step() {
      const startedAtMs = systemClock.nowMs();
      const started = performance.now();
      const { stepped, finished, failed, batch } = await stage.step();
      const ms = performance.now() - started;
      for (const { id, stepsDone } of stepped) if (stepsDone === 1) jobs.get(id)!.startedAtMs = startedAtMs;
      if (batch !== undefined) {
        const steps = stepped.map(({ id, stepsDone, preview }) => ({ id, stepsDone, ...(preview && { preview }) }));
        reply.report({
          model: batch.model,
          shape: batch.shape,
          rows: batch.rows.length,
          ms,
          waiting: stage.waiting,
          steps,
        });
      }
      for (const { id, model, latent } of finished) {
        const result = {
          latent: latent as Float32Array<ArrayBuffer>,
          startedAtMs: jobs.get(id)!.startedAtMs!,
          batchDifference: models.get(model).unet.batchDifference ?? 0,
        };
        jobs.delete(id);
        reply.done(id, result, [result.latent.buffer]);
      }
      for (const { job, error } of failed) {
        jobs.delete(job.id);
        reply.failed(job.id, error);
      }
    },
    release: () => models.closeAll(),
  };
}
