import { ServingError } from "@atelier/core";
import type { Admission, AdmissionTicket, MakeLimits, ServiceOrder } from "../generations/ports.ts";
import type { CompleteRequest, ImageRequest } from "../image-request.ts";
import type { Placer, Prediction } from "../placement/placer.ts";
import type { AdmissionMetrics } from "./admission-metrics.ts";
import type { BrownOut } from "./brown-out.ts";

export interface DeviceAdmissionOptions {
  readonly placer: Pick<Placer, "predict">;
  /** Milliseconds of device time that may lie before a request on the worker that it would go to. */
  readonly waitMaxMs: number;
  /** Undefined: nothing is ever asked less of. */
  readonly brownOut: BrownOut | undefined;
  readonly metrics: AdmissionMetrics;
}

/**
 * Lets in what can be served in time. The queue that it bounds is not one of its own: it is the work that waits on the
 * worker that would be done first, in device milliseconds, for requests as urgent as this one. So a refusal costs a
 * prediction and nothing else, and says when there will be room.
 */
export class DeviceAdmission implements Admission {
  readonly #options: DeviceAdmissionOptions;

  constructor(options: DeviceAdmissionOptions) {
    this.#options = options;
  }

  adjust(asked: CompleteRequest, order: ServiceOrder): CompleteRequest {
    const { brownOut } = this.#options;
    if (brownOut === undefined) return asked;
    const predicted = this.#predict({ ...asked, seed: asked.seed ?? 0 }, order);
    return predicted === undefined ? asked : brownOut.apply(asked, predicted.waitMs);
  }

  enter(image: ImageRequest, { order, deadline }: Pick<MakeLimits, "order" | "deadline">): AdmissionTicket {
    const predicted = this.#predict(image, order);
    // Without a worker there is nothing to predict by; the dispatcher waits for one as long as the deadline lets it.
    if (predicted !== undefined) this.#check(predicted, deadline.leftMs);
    return NOTHING_HELD;
  }

  #check({ waitMs, finishMs, measured }: Prediction, leftMs: number): void {
    const { waitMaxMs, metrics } = this.#options;
    metrics.predictedWaitSeconds.observe(waitMs / 1000);
    if (waitMs > waitMaxMs) {
      metrics.refusals.inc({ reason: "queue" });
      throw overloaded(
        `about ${seconds(waitMs)} of work lies before this request, and ${seconds(waitMaxMs)} is the most that may`,
        waitMs - waitMaxMs,
      );
    }
    if (finishMs <= leftMs || !measured) return; // a guess turns nobody away
    const aloneMs = finishMs - waitMs;
    if (waitMs <= aloneMs && finishMs <= leftMs * ALONE_DOUBT) return;
    metrics.refusals.inc({ reason: "deadline" });
    if (aloneMs > leftMs) {
      const message = `the request takes about ${seconds(aloneMs)} by itself, and its deadline is in ${seconds(leftMs)}`;
      throw new ServingError("DEADLINE_EXCEEDED", message, { field: "deadline_ms" });
    }
    throw overloaded(
      `the request would be finished in about ${seconds(finishMs)}, and its deadline is in ${seconds(leftMs)}`,
      finishMs - leftMs,
    );
  }

  #predict(image: ImageRequest, order: ServiceOrder): Prediction | undefined {
    try {
      return this.#options.placer.predict(image, order);
    } catch (error) {
      if (error instanceof ServingError && error.code === "NO_WORKER") return undefined;
      throw error;
    }
  }
}

/** @param retryAfterMs until so much of the work before it is done, if nothing more comes. */
function overloaded(message: string, retryAfterMs: number): ServingError {
  return new ServingError("OVERLOADED", message, { retryAfterMs });
}

/**
 * By how much a prediction may be over the deadline where most of it is the request itself: a device that is hardly busy may
 * turn out faster than what it learned of other batches, and to try costs nobody else much.
 */
const ALONE_DOUBT = 2;

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

const NOTHING_HELD: AdmissionTicket = { leave: () => {} };
