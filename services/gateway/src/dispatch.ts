import { type Deadline, newId, ServingError } from "@atelier/core";
import type { GenerateResponse } from "@atelier/proto";
import type { Balancer } from "./balancer.ts";
import type { Fleet } from "./fleet/fleet.ts";
import type { WorkerView } from "./fleet/worker-view.ts";
import type { GeneratedPicture, Generation, GenerationEvent, ImageRequest } from "./image-request.ts";
import { pictureFromWire, previewFromWire, progressFromWire, receiptFromWire, requestToWire } from "./wire.ts";

export interface DispatchLimits {
  readonly deadline: Deadline;
  /** Aborted with a ServingError when nobody wants the answer any more. */
  readonly signal: AbortSignal;
  /** Told of the request's way while it lasts, in order. Must not throw. */
  readonly onEvent?: (event: GenerationEvent) => void;
}

/** Places a request on a worker and brings its pictures back. */
export class Dispatcher {
  readonly #fleet: Fleet;
  readonly #balancer: Balancer;

  constructor(fleet: Fleet, balancer: Balancer) {
    this.#fleet = fleet;
    this.#balancer = balancer;
  }

  /**
   * One attempt on one worker.
   *
   * @throws ServingError with the worker's own code, WORKER_LOST when it died on the way, DEADLINE_EXCEEDED, NO_WORKER,
   * or the reason of `signal`.
   */
  async generate(request: ImageRequest, limits: DispatchLimits): Promise<Generation> {
    limits.signal.throwIfAborted();
    limits.deadline.check("placing the request on a worker");
    const worker = this.#balancer.pick(request, this.#fleet.views());
    const placement = this.#fleet.place(worker.address);
    try {
      return await attempt(request, worker, placement.client, limits);
    } finally {
      placement.release();
    }
  }
}

type GenerateClient = Pick<ReturnType<Fleet["place"]>["client"], "generate">;

function attempt(
  request: ImageRequest,
  worker: WorkerView,
  client: GenerateClient,
  limits: DispatchLimits,
): Promise<Generation> {
  const { signal, deadline } = limits;
  return new Promise((resolve, reject) => {
    const answer = new AnswerInProgress(request, limits.onEvent);
    const settle = (finish: () => void) => {
      signal.removeEventListener("abort", abort);
      try {
        finish();
      } catch (error) {
        reject(error);
      }
    };
    const cancel = client.generate(
      requestToWire(request, newId(request.id)),
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
  readonly #onEvent: DispatchLimits["onEvent"];
  readonly #pictures: (GeneratedPicture | undefined)[];
  #stepsTotal = 0;
  #completed: Extract<GenerateResponse["event"], { case: "completed" }>["value"] | undefined;

  constructor(request: ImageRequest, onEvent: DispatchLimits["onEvent"]) {
    this.#request = request;
    this.#onEvent = onEvent;
    this.#pictures = Array.from({ length: request.numImages });
  }

  get complete(): boolean {
    return this.#completed !== undefined;
  }

  take({ event }: GenerateResponse): void {
    if (event.case === "image") this.#pictures[event.value.imageIndex] = pictureFromWire(event.value);
    if (event.case === "completed") this.#completed = event.value;
    if (event.case === "accepted") {
      this.#stepsTotal = event.value.stepsTotal;
      this.#onEvent?.({ type: "accepted", stepsTotal: this.#stepsTotal });
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
