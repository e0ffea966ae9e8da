import type { Deadline } from "@atelier/core";
import type { WorkerClient } from "../fleet/worker-client.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { ServiceOrder } from "../generations/ports.ts";
import type { ImageRequest } from "../image-request.ts";

/** What placing a request now would come to. */
export interface Prediction {
  /** Milliseconds until its first step, waiting for other work and for its model included. */
  readonly waitMs: number;
  /** Milliseconds of device time that the request itself takes, among others. */
  readonly workMs: number;
  /** Milliseconds from now until its pictures are here. */
  readonly finishMs: number;
  /** False where workers have not run its like yet, or hardly: then it is a guess. */
  readonly measured: boolean;
}

export interface PlaceLimits {
  readonly order: ServiceOrder;
  readonly deadline: Deadline;
  /** Aborted with a ServingError when the request is no longer wanted. */
  readonly signal: AbortSignal;
  /** Addresses of workers that have failed this request: not again while there are others. */
  readonly avoid: ReadonlySet<string>;
}

/** Chooses workers, and keeps the count of what was placed where. */
export interface Placer {
  /** @throws ServingError NO_WORKER naming what is missing. */
  predict(image: ImageRequest, order: ServiceOrder): Prediction;
  /** Rejects with NO_WORKER, DEADLINE_EXCEEDED, OVERLOADED, or the signal's reason. */
  place(image: ImageRequest, limits: PlaceLimits): Promise<Placement>;
}

/** A request's place on a worker. */
export interface Placement {
  readonly worker: WorkerView;
  readonly client: Pick<WorkerClient, "generate">;
  readonly predicted: Prediction;
  /** The worker took it: its states of a higher number count it. */
  accepted(acceptance: { readonly sequence: bigint }): void;
  /** It is over there, well or not. More than once is once. */
  release(failure?: Error): void;
}
