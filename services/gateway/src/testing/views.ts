import { NO_COSTS } from "../fleet/step-costs.ts";
import type { ModelView, WorkerView } from "../fleet/worker-view.ts";
import type { ImageRequest } from "../image-request.ts";

/** A ready, idle worker that holds the model "m", but for `changes`. */
export function workerView(
  address: string,
  {
    models = ["m"],
    ...changes
  }: Partial<Omit<WorkerView, "models">> & { models?: readonly (string | ModelView)[] } = {},
): WorkerView {
  const views = models.map((model) => (typeof model === "string" ? modelView(model) : model));
  return {
    address,
    id: address,
    pool: "default",
    simulated: false,
    heard: true,
    ready: true,
    draining: false,
    notReadyReason: undefined,
    inFlight: 0,
    jobsLeftMs: { interactive: [], standard: [], bulk: [] },
    backlogMs: { interactive: 0, standard: 0, bulk: 0 },
    shortestFirst: true,
    requestsFree: 64,
    costs: NO_COSTS,
    ...changes,
    models: new Map(views.map((model) => [model.id, model])),
  };
}

export function modelView(
  id: string,
  limits: Partial<ModelView["limits"]> = {},
  status: ModelView["place"]["status"] = "resident",
): ModelView {
  return {
    id,
    place: { status, progress: status === "resident" ? 1 : 0, weightsBytes: 1000, loadMs: 1000 },
    name: id,
    digest: "sha256:00",
    family: "sd-tiny",
    license: "Apache-2.0",
    limits: {
      sizeMin: 64,
      sizeMax: 1024,
      sizeMultiple: 8,
      pixelsMax: 1024 * 1024,
      stepsMax: 150,
      numImagesMax: 4,
      ...limits,
    },
    defaults: {
      nativeWidth: 256,
      nativeHeight: 256,
      width: 512,
      height: 512,
      steps: 25,
      guidanceScale: 2.5,
      sampler: "dpmpp_2m",
    },
    stepMs: 10,
    twoPasses: undefined,
  };
}

/** A request for one 256x256 picture of 20 steps from the model "m", but for `changes`. */
export function imageRequest(changes: Partial<ImageRequest> = {}): ImageRequest {
  return {
    id: "r1",
    model: "m",
    prompt: "a red mug",
    negativePrompt: "",
    width: 256,
    height: 256,
    steps: 20,
    guidanceScale: 2.5,
    sampler: "dpmpp_2m",
    seed: 1,
    numImages: 1,
    format: "png",
    quality: undefined,
    adapters: [],
    ...changes,
  };
}
