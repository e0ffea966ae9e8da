import { ImageFormat, PriorityClass, Sampler, type WorkItem, WorkItemSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { type ItemShape, type ItemSpec, type JobPriority, type JobRecord, jobKeys } from "../job.ts";

export const PRIORITY_CLASS: Record<JobPriority, PriorityClass> = {
  standard: PriorityClass.STANDARD,
  bulk: PriorityClass.BULK,
};

const FORMATS: Record<ItemShape["format"], ImageFormat> = {
  png: ImageFormat.PNG,
  jpeg: ImageFormat.JPEG,
  webp: ImageFormat.WEBP,
};

const EXTENSIONS: Record<ItemShape["format"], string> = { png: "png", jpeg: "jpg", webp: "webp" };

/** Where the item's picture lies. */
export function pictureKey(record: JobRecord, item: ItemSpec): string {
  return jobKeys(record.id).picture(item.index, item.variant, EXTENSIONS[record.shapes[item.shape]!.format]);
}

/** The item as a worker takes it: everything decided. */
export function workItemOf(record: JobRecord, item: ItemSpec, round: number): WorkItem {
  const shape = record.shapes[item.shape]!;
  return create(WorkItemSchema, {
    jobId: record.id,
    itemIndex: item.index,
    parameters: {
      model: shape.model,
      prompt: item.prompt,
      negativePrompt: item.negativePrompt,
      width: shape.width,
      height: shape.height,
      steps: shape.steps,
      guidanceScale: shape.guidanceScale,
      // The HTTP API's names are the wire's in lower case.
      sampler: Sampler[shape.sampler.toUpperCase() as keyof typeof Sampler] ?? Sampler.UNSPECIFIED,
      karrasSigmas: shape.karrasSigmas,
      seed: BigInt(item.seed),
      numImages: 1,
    },
    format: FORMATS[shape.format],
    quality: shape.quality ?? 0,
    order: {
      priorityClass: PRIORITY_CLASS[record.priority],
      tenant: record.tenant,
      tenantWeight: record.weight,
    },
    objectKey: pictureKey(record, item),
    round,
    predictedDeviceMs: shape.predictedDeviceMs,
    requestId: record.origin?.requestId ?? "",
  });
}
