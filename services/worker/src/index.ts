/** What tests and benches outside this service drive it by. Processes speak to it through gRPC only. */

export type { ServiceMessage } from "@atelier/lifecycle";
export { Backlog, type JobWork } from "./backlog.ts";
export { type Bundle, readBundle } from "./bundle/index.ts";
export { openDevice } from "./device/device.ts";
export type { SimulatedGpu } from "./device/simulated/gpu-figures.ts";
export { GpuTimes } from "./device/simulated/gpu-times.ts";
export type { GenerationCall, GenerationEvent, GenerationOutcome } from "./generation.ts";
export { createPipeline, type Pipeline, type PipelineOptions } from "./pipeline.ts";
export { PromptTokenizer, parsePrompt } from "./prompt/index.ts";
export type { GenerationRequest } from "./request.ts";
export { StatePublisher } from "./server/state-publisher.ts";
export { wireSampler } from "./server/wire.ts";
export { toRgb } from "./stages/image-decode.ts";
export type { EncodedImage, ImageFormat } from "./stages/image-file.ts";
export { type ScheduledJob, type StepBatch, StepScheduler } from "./stages/order/step-scheduler.ts";
export { decodeInTiles } from "./stages/tiled-decode.ts";
export { StepTimes } from "./step-times.ts";
