import { newId, ServingError } from "@atelier/core";
import type { GenerateResponse } from "@atelier/proto";
import type { WorkerView } from "./fleet/worker-view.ts";
import type { MakeLimits } from "./generations/ports.ts";
import type { GeneratedPicture, Generation, ImageRequest } from "./image-request.ts";
import type { Placement, Placer } from "./placement/placer.ts";
import {
  backlogFromWire,
  passingFromWire,
  pictureFromWire,
  previewFromWire,
  progressFromWire,
  receiptFromWire,
  requestToWire,
} from "./wire.ts";

/** Places a request on a worker and brings its pictures back. */
export class Dispatcher {
  readonly #placer: Placer;

  constructor(placer: Placer) {
    this.#placer = placer;
  }

  /**
   * One attempt on one worker.
   *
   * @throws ServingError with the worker's own code, WORKER_LOST when it died on the way, DEADLINE_EXCEEDED, NO_WORKER,
   * or the reason of `signal`.
   */
  async generate(request: ImageRequest, limits: MakeLimits): Promise<Generation> {
    const placement = await this.#placer.place(request, { ...limits, avoid: new Set() });
    try {
      return await attempt(request, placement, limits);
    } finally {
      placement.release();
    }
  }
}

/** Steps between two sights of a passing picture. */
const CHECKPOINT_EVERY = 5;

function attempt(request: ImageRequest, placement: Placement, limits: MakeLimits): Promise<Generation> {
  const { signal, deadline, order } = limits;
  const { worker, client } = placement;
  return new Promise((resolve, reject) => {
    const answer = new AnswerInProgress(request, placement, limits);
    const settle = (finish: () => void) => {
      signal.removeEventListener("abort", abort);
      try {
        finish();
      } catch (error) {
        reject(error);
      }
    };
    const cancel = client.generate(
      requestToWire(request, {
        callId: newId(request.id),
        order,
        checkpointEvery: limits.onCheckpoint === undefined ? 0 : CHECKPOINT_EVERY,
      }),
      { deadlineAtMs: deadline.atMs },
      {
        message: (message) => answer.take(message),
        end: (failure) =>
          settle(() => {
            // A connection that breaks after the receipt came took nothing from the answer.
            if (failure !== undefined && !answer.complete) throw explain(failure, worker);
            resolve(answer.finish(worker));
          }),
      },
    );
    const abort = () =>
      settle(() => {
        cancel();
        throw signal.reason;
      });
    signal.addEventListener("abort", abort);
  });
}

/** The events of one call, gathered. */
class AnswerInProgress {
  readonly #request: ImageRequest;
  readonly #placement: Placement;
  readonly #onEvent: MakeLimits["onEvent"];
  readonly #onCheckpoint: MakeLimits["onCheckpoint"];
  readonly #pictures: (GeneratedPicture | undefined)[];
  #stepsTotal = 0;
  #completed: Extract<GenerateResponse["event"], { case: "completed" }>["value"] | undefined;

  constructor(request: ImageRequest, placement: Placement, { onEvent, onCheckpoint }: MakeLimits) {
    this.#request = request;
    this.#placement = placement;
    this.#onEvent = onEvent;
    this.#onCheckpoint = onCheckpoint;
    this.#pictures = Array.from({ length: request.numImages });
  }

  get complete(): boolean {
    return this.#completed !== undefined;
  }

  take({ event }: GenerateResponse): void {
    if (event.case === "image") this.#pictures[event.value.imageIndex] = pictureFromWire(event.value);
    if (event.case === "checkpoint" && event.value.state !== undefined) {
      this.#onCheckpoint?.(passingFromWire(event.value.state, event.value.state.imageIndex));
    }
    if (event.case === "completed") this.#completed = event.value;
    if (event.case === "accepted") {
      this.#stepsTotal = event.value.stepsTotal;
      this.#placement.accepted(backlogFromWire(event.value));
      const { seed, model } = this.#request;
      this.#onEvent?.({ type: "accepted", seed, model, stepsTotal: this.#stepsTotal });
    }
    if (event.case === "progress") {
      const progress = progressFromWire(event.value, this.#stepsTotal);
      if (progress !== undefined) this.#onEvent?.({ type: "progress", ...progress });
      const preview = previewFromWire(event.value, this.#stepsTotal);
      if (preview !== undefined) this.#onEvent?.({ type: "preview", ...preview });
    }
  }

  /** @throws ServingError INTERNAL when the worker ended well and yet left something out. */
  finish(worker: WorkerView): Generation {
    const pictures = this.#pictures.filter((picture) => picture !== undefined);
    if (this.#completed === undefined || pictures.length !== this.#request.numImages) {
      const missing =
        this.#completed === undefined ? "no receipt" : `${pictures.length} of ${this.#request.numImages} images`;
      throw new ServingError("INTERNAL", `worker ${worker.id} ended its answer with ${missing}`);
    }
    return { pictures, receipt: receiptFromWire(this.#completed.receipt) };
  }
}

/** A failure as the caller should read it. */
function explain(failure: ServingError, worker: WorkerView): ServingError {
  // We did not cancel (an abort settles before its echo comes), so a cancelled call is a worker that dropped it.
  if (failure.code !== "WORKER_LOST" && failure.code !== "CANCELLED") return failure;
  const message = `worker ${worker.id} was lost before the image was finished (${failure.detail}); the request can be sent again`;
  return new ServingError("WORKER_LOST", message, { cause: failure });
}
