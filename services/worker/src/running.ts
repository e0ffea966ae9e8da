import type { GenerationCall } from "./generation.ts";
import type { MemoryDemand } from "./memory/memory-budget.ts";
import type { Model } from "./models.ts";
import { type Phases, stepsDoneAt } from "./phases.ts";
import type { GenerationRequest } from "./request.ts";
import { StageSpans } from "./stage-spans.ts";
import type { RgbImage } from "./stages/image-file.ts";
import { DEFAULT_ORDER, type ServiceOrder } from "./stages/order/service-order.ts";
import { type PreviewMap, previewMapOf } from "./stages/preview.ts";

/** A request as it was planned. */
export interface RunningParts {
  readonly model: Model;
  readonly phases: Phases;
  readonly picture: RgbImage | undefined;
}

/** A request in flight. */
export class Running {
  readonly request: GenerationRequest;
  readonly call: GenerationCall;
  readonly model: Model;
  readonly phases: Phases;
  /** What image to image starts from. */
  readonly picture: RgbImage | undefined;
  readonly jobIds: readonly string[];
  readonly previewMap: PreviewMap | undefined;
  /** By image. */
  readonly stepsDone: number[];
  readonly resumedAtSteps: readonly number[];
  readonly spans: StageSpans;
  /** Milliseconds that it waited for its model and the text encoder. */
  waitedMs = 0;
  /** When it began to wait for its first step. */
  encodedAtMs = 0;
  /** That it began was noted; of a warm-up nobody wants to know. */
  begun = false;

  constructor(request: GenerationRequest, call: GenerationCall, { model, phases, picture }: RunningParts) {
    this.request = request;
    this.call = call;
    this.spans = new StageSpans(call.span);
    this.model = model;
    this.phases = phases;
    this.picture = picture;
    this.previewMap = previewMapOf(model.bundle);
    this.jobIds = Array.from({ length: request.numImages }, (_, i) => `${request.id}#${i}`);
    const plan = model.plans.get(request);
    this.stepsDone = this.jobIds.map((_, i) => {
      const from = request.resumeFrom?.get(i);
      return from === undefined ? 0 : stepsDoneAt(from.snapshot, phases, plan);
    });
    this.resumedAtSteps = [...(request.resumeFrom?.keys() ?? [])].map((i) => this.stepsDone[i]!);
  }

  /** At a scale of 1 and below guidance has nothing to add, and a step takes one row instead of two. */
  get guided(): boolean {
    return this.request.guidanceScale > 1;
  }

  get order(): ServiceOrder {
    return this.request.order ?? DEFAULT_ORDER;
  }

  get totalStepsDone(): number {
    return this.stepsDone.reduce((sum, steps) => sum + steps, 0);
  }

  get jobWork() {
    const { shape, refine, steps } = this.phases;
    const refineSteps = refine === undefined ? 0 : this.model.plans.get(this.request).stepCount - refine.firstStep;
    const passes = [
      { shape, steps: steps - refineSteps },
      ...(refine === undefined ? [] : [{ shape: refine.shape, steps: refineSteps }]),
    ];
    return { model: this.request.model, priorityClass: this.order.priorityClass, rows: this.guided ? 2 : 1, passes };
  }
}

/** A step of one image at its largest shape, and what all images keep meanwhile. */
export function demandOf({ guidanceScale, numImages }: GenerationRequest, { shape, refine }: Phases): MemoryDemand {
  return { shape: refine?.shape ?? shape, rows: guidanceScale > 1 ? 2 : 1, images: numImages };
}

/** The request that a job of this id belongs to, if it is still in flight, and which of its images the job makes. */
export function parseJobId(id: string, inFlight: ReadonlyMap<string, Running>) {
  const at = id.lastIndexOf("#");
  return { running: inFlight.get(id.slice(0, at)), imageIndex: Number(id.slice(at + 1)) };
}
