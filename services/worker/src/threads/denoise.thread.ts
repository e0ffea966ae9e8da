import { Deadline, preciseClock, type ServingError, systemClock } from "@atelier/core";
import type { LatentShape, SchedulerConfig } from "@atelier/diffusion";
import { type DeviceSpec, type NetworkFiles, openDevice, type UnetLanes, wideOnly } from "../device/device.ts";
import { rowsMax, type StepRoom } from "../memory/step-room.ts";
import { type PlanKey, Plans } from "../plans.ts";
import { type DenoiseLimits, DenoiseStage, type StepRun } from "../stages/denoise.ts";
import {
  type Conditioning,
  DenoiseJob,
  type JobSnapshot,
  type Prediction,
  type RefinePhase,
  type StartImage,
  type StartLatent,
} from "../stages/denoise-job.ts";
import type { PriorityClass, ServiceOrder } from "../stages/order/service-order.ts";
import { type LaneCounts, StepScheduler } from "../stages/order/step-scheduler.ts";
import { type StepTime, StepTimes } from "../step-times.ts";
import { errorOf, type Failure, failureOf } from "./messages.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface DenoiseData {
  readonly device: DeviceSpec;
  readonly limits: DenoiseLimits & { readonly stepBatchMax: number; readonly ageingMs: number };
  /** What was learned in earlier runs. */
  readonly stepTimes: readonly StepTime[];
}

export interface DenoiseFiles extends NetworkFiles {
  readonly scheduler: SchedulerConfig;
  /** Whether there is memory for narrow lanes. */
  readonly narrowLanes: boolean;
}

export interface DenoiseWork {
  readonly model: string;
  readonly plan: PlanKey;
  readonly shape: LatentShape;
  readonly start: StartImage | StartLatent | undefined;
  readonly refine: RefinePhase | undefined;
  /** Its arrays are over shared memory: the images of a request read the same. */
  readonly conditioning: Conditioning;
  readonly guidanceScale: number;
  readonly seed: bigint;
  readonly deadlineAtMs: number;
  /** Where another process left the image. */
  readonly from: { readonly snapshot: JobSnapshot; readonly stepsDone: number } | undefined;
  readonly checkpointEverySteps: number;
  readonly previewEverySteps: number;
  readonly order: ServiceOrder;
}

/** A finished latent; or, of a job that was told to leave, where it stands. */
export type DenoiseResult =
  | {
      readonly latent: Float32Array<ArrayBuffer>;
      /** When its first step began, by the system clock. */
      readonly startedAtMs: number;
      /** As `UnetLanes` tells it. */
      readonly batchDifference: number;
      /** How often it gave way to more urgent work. */
      readonly preemptions: number;
      /** Milliseconds of the whole device that its steps took. */
      readonly deviceMs: number;
    }
  | { readonly left: JobSnapshot };

export type DenoiseCommand =
  /** Image decode has taken this many finished latents. */
  | { readonly taken: number }
  /** Every job stops before its next step, for this reason, and says where it stands. */
  | { readonly leave: Failure }
  /** What a model's step batches may take from now on. */
  | { readonly model: string; readonly room: StepRoom };

export type DenoiseReport = RunReport | LanesFailed;

/** One U-Net run. */
export interface RunReport {
  readonly type: "ran";
  readonly model: string;
  readonly shape: LatentShape;
  readonly rows: number;
  /** That it could have had. */
  readonly rowsMax: number;
  readonly startedAtMs: number;
  readonly ms: number;
  /** CPU threads of the lane; 0 on a device that has one lane. */
  readonly threads: number;
  readonly lane: string;
  /** Lanes that can run beside one another as this one did. */
  readonly lanes: number;
  readonly priorityClass: PriorityClass;
  /** The device had no room for it: nobody made a step. */
  readonly refused: boolean;
  /** Images that make no step right now. */
  readonly waiting: number;
  /** Images that have had to give way since the last report. */
  readonly preempted: number;
  readonly steps: readonly JobStep[];
}

/** One job's part in a run. */
export interface JobStep {
  readonly id: string;
  readonly stepsDone: number;
  readonly preview?: Prediction;
  readonly checkpoint?: JobSnapshot;
}

/** Lanes that were to be opened beside those that run, and could not be. */
export interface LanesFailed {
  readonly type: "lanes-failed";
  readonly model: string;
  readonly failure: Failure;
}

await hostStage(openDenoise);

function openDenoise(
  { device, limits, stepTimes }: DenoiseData,
  reply: Reply<DenoiseResult, DenoiseReport>,
): HostedStage<DenoiseWork, DenoiseCommand, DenoiseFiles> {
  const opener = openDevice(device);
  const models = new ModelNetworks(async ({ scheduler, narrowLanes, ...files }: DenoiseFiles) => {
    const lanes = await opener.openUnet(files);
    return {
      lanes: narrowLanes ? lanes : wideOnly(lanes),
      plans: new Plans(scheduler),
      note: lanes.note,
      // Narrow lanes open later.
      get weightsBytes() {
        return lanes.weightsBytes;
      },
      release: () => lanes.release(),
    };
  });
  const lanesOf = (model: string): UnetLanes => models.get(model).lanes;
  const jobs = new Map<string, { job: DenoiseJob; startedAtMs: number | undefined }>();
  const times = StepTimes.fromJSON(stepTimes);
  const rooms = new Map<string, StepRoom>();
  const scheduler = new StepScheduler<DenoiseJob>({
    ...limits,
    times,
    lanesOf: (model) => countLanes(lanesOf(model)),
    rowsMax: (model, shape) => {
      const room = rooms.get(model);
      if (room === undefined) return Infinity;
      const lanes = Math.max(1, lanesOf(model).narrow.length); // which share it
      return rowsMax({ ...room, bytes: room.bytes / lanes }, shape);
    },
  });
  const stage = new DenoiseStage<DenoiseJob>({
    lanesOf,
    scheduler,
    clock: preciseClock,
    limits,
    onLanesFailed: (model: string, error: ServingError) =>
      reply.report({ type: "lanes-failed", model, failure: failureOf(error) }),
  });

  let unreported = 0; // images that had to give way, since the last report

  return {
    openModel: (files) => models.open(files),
    closeModel(model) {
      scheduler.forget(model);
      rooms.delete(model);
      return models.close(model);
    },
    enqueue(id, work) {
      const plan = models.get(work.model).plans.get(work.plan);
      const deadline = new Deadline(systemClock, work.deadlineAtMs);
      const job = new DenoiseJob({ ...work, id, plan, deadline });
      stage.enqueue(job);
      jobs.set(id, { job, startedAtMs: undefined });
    },
    cancel(id) {
      jobs.get(id)?.job.cancel();
      stage.look();
    },
    command(command) {
      if ("taken" in command) return stage.taken(command.taken);
      if ("room" in command) {
        rooms.set(command.model, command.room);
        return;
      }
      const reason: ServingError = errorOf(command.leave);
      for (const { job } of jobs.values()) job.leave(reason);
      stage.look();
    },
    get busy() {
      return stage.busy;
    },
    async step() {
      const { runs, finished, failed, preempted } = await stage.step();
      unreported += preempted;
      for (const run of runs) {
        const report = reportOf(run, { waiting: stage.waiting, preempted: unreported });
        unreported = 0;
        for (const { id } of run.stepped) jobs.get(id)!.startedAtMs ??= run.batch.startedAtMs;
        if (!run.refused) times.observe(report);
        reply.report(report);
      }
      for (const { id, model, latent, preemptions, deviceMs } of finished) {
        const startedAtMs = jobs.get(id)!.startedAtMs!;
        const batchDifference = lanesOf(model).batchDifference ?? 0;
        const data = latent as Float32Array<ArrayBuffer>;
        const result = { latent: data, startedAtMs, batchDifference, preemptions, deviceMs };
        jobs.delete(id);
        reply.done(id, result, [result.latent.buffer]);
      }
      for (const { job, error } of failed) {
        jobs.delete(job.id);
        if (job.leaving) reply.done(job.id, { left: job.snapshot });
        else reply.failed(job.id, error);
      }
    },
    async release() {
      await stage.quiet();
      await models.closeAll();
    },
  };
}

function countLanes({ wide, narrow, narrowMax }: UnetLanes): LaneCounts {
  const wideThreads = narrowMax === 0 ? 0 : wide.threads;
  return { wideThreads, narrowThreads: narrow[0]?.threads ?? 1, narrow: narrow.length, narrowMax };
}

function reportOf(
  { batch, endedAtMs, stepped, refused }: StepRun<DenoiseJob>,
  more: { readonly waiting: number; readonly preempted: number },
): RunReport {
  const { model, shape, rowCount, rowsMax, startedAtMs, threads, slot, lanes, priorityClass } = batch;
  return {
    type: "ran",
    model,
    shape,
    rows: rowCount,
    rowsMax,
    startedAtMs,
    ms: endedAtMs - startedAtMs,
    threads,
    lane: String(slot),
    lanes,
    priorityClass,
    refused,
    ...more,
    steps: stepped.map(({ id, stepsDone, preview, checkpoint }) => ({
      id,
      stepsDone,
      ...(preview && { preview }),
      ...(checkpoint && { checkpoint }),
    })),
  };
}
