import { type Clock, Deadline, invariant, toServingError } from "@atelier/core";
import { itemId } from "@atelier/job-queue";
import { type DenoiseState, GenerateRequestSchema, type WorkItem } from "@atelier/proto";
import { currentSpan } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import type { Pipeline } from "../pipeline.ts";
import { readGenerateRequest, wireReceipt, wireState } from "../server/wire.ts";
import type { WorkerIdentity } from "../server/worker-state.ts";
import type { EncodedImage } from "../stages/image-file.ts";
import type { WorkerView } from "./bulk-work.ts";
import type { ItemMaker, MadeItem, Making } from "./item-maker.ts";

/** Urgent work may keep an item waiting for long; one that takes longer than this hangs. */
const ITEM_MAX_MS = 60 * 60_000;

/** Makes items by the pipeline, as requests that have places of their own there. */
export class PipelineMaker implements ItemMaker {
  readonly #pipeline: Pipeline;
  readonly #identity: WorkerIdentity;
  readonly #clock: Clock;
  #made = 0;

  constructor(pipeline: Pipeline, { identity, clock }: { identity: WorkerIdentity; clock: Clock }) {
    this.#pipeline = pipeline;
    this.#identity = identity;
    this.#clock = clock;
  }

  async make(item: WorkItem, how: Making): Promise<MadeItem> {
    try {
      return await this.#make(item, how);
    } catch (error) {
      // The state is another model's by now, or was damaged: the picture is the same without it.
      if (how.resume === undefined || toServingError(error).field !== "resume_from") throw error;
      return await this.#make(item, { ...how, resume: undefined });
    }
  }

  async #make(item: WorkItem, { signal, resume, onProgress, onState }: Making): Promise<MadeItem> {
    const request = readGenerateRequest(messageOf(item, resume, this.#made++), this.#clock);
    const parameters = item.parameters!;
    let image: EncodedImage | undefined;
    let total = 0;
    const outcome = await this.#pipeline.generate(request, {
      signal,
      span: currentSpan(),
      pulled: true,
      deadline: Deadline.after(this.#clock, ITEM_MAX_MS),
      onEvent: (event) => {
        switch (event.type) {
          case "accepted":
            total = event.stepsTotal;
            break;
          case "progress":
            if (event.stage === "image_decode") onProgress({ done: total, total });
            else if (event.stage === "denoise") onProgress({ done: event.stepsDone, total });
            break;
          case "checkpoint":
            onState(wireState(event, { parameters, device: this.#identity.device }));
            break;
          case "image":
            image = event.image;
        }
      },
    });
    invariant(image !== undefined, "a picture that was made is told of");
    const { data: bytes, mediaType } = image;
    const receipt = wireReceipt({ ...parameters, prompt: "", negativePrompt: "" }, outcome, this.#identity);
    return { bytes, mediaType, receipt };
  }
}

/** An item that comes again while its last delivery is still being let go of is another request. */
function messageOf(item: WorkItem, resume: DenoiseState | undefined, number: number) {
  const { parameters, format, quality, order } = item;
  return create(GenerateRequestSchema, {
    requestId: `item-${itemId(item)}-${number}`,
    ...(parameters && { parameters }),
    ...(order && { order }),
    format,
    quality,
    resumeFrom: resume === undefined ? [] : [resume],
  });
}

/** A pipeline as the policy sees it. */
export function viewOf(pipeline: Pipeline): WorkerView {
  const { residency: models, requestsDenoising, crowded } = pipeline;
  return { models, requestsDenoising, crowded };
}
