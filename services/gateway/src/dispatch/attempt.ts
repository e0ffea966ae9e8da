import { type Clock, newId, ServingError, toServingError } from "@atelier/core";
import type { GenerateResponse } from "@atelier/proto";
import type { Logger } from "@atelier/telemetry";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { MakeLimits } from "../generations/ports.ts";
import type { ImageRequest } from "../image-request.ts";
import type { Placement } from "../placement/placer.ts";
import { requestToWire } from "../wire.ts";
import { allowedSilenceMs } from "./allowed-silence.ts";
import { callWorker, type WorkerCall } from "./call-worker.ts";
import { checkpointInterval } from "./checkpoint-interval.ts";
import type { DispatchMetrics } from "./dispatch-metrics.ts";
import { explain } from "./failure.ts";
import type { Gathering, Maker } from "./gathering.ts";
import type { Slice } from "./slice.ts";
import { StallWatch } from "./stall-watch.ts";

/** A request on its way. */
export interface Making {
  readonly request: ImageRequest;
  readonly limits: MakeLimits;
  readonly gathering: Gathering;
}

/** How an attempt failed. */
export interface Failed {
  readonly error: ServingError;
  /** Its worker had taken it. */
  readonly accepted: boolean;
}

export interface AttemptOptions {
  readonly fleet: { views(): readonly WorkerView[] };
  readonly clock: Clock;
  readonly metrics: DispatchMetrics;
  readonly log: Pick<Logger, "info">;
  readonly limits: { readonly stallMs: number; readonly checkpointEvery: number | undefined };
}

/** What somebody else has finished ends with this. */
export const SUPERSEDED = new ServingError("CANCELLED", "the pictures came from another attempt");

/** A latent means something only to the model that made it: another worker's begins from noise. */
function startable(request: ImageRequest, { models, simulated }: WorkerView): ImageRequest {
  const { startLatent, ...rest } = request;
  if (startLatent === undefined) return request;
  const fits = models.get(request.model)?.digest === startLatent.modelDigest && simulated === startLatent.simulated;
  return fits ? request : rest;
}

/** One call to one worker for a slice of a request. What it brings is the request's, whatever becomes of the attempt. */
export class Attempt {
  /** How it failed; undefined: its slice is complete. Rejects with the reason of the request's signal. */
  readonly failed: Promise<Failed | undefined>;
  /** True where it began from noise: it took as long as a whole request does. */
  readonly fromNoise: boolean;
  readonly #slice: Slice;
  readonly #placement: Placement;
  readonly #making: Making;
  readonly #options: AttemptOptions;
  readonly #maker: Maker;
  readonly #call: WorkerCall;
  readonly #watch: StallWatch;
  #accepted = false;
  #stalled = false;

  constructor(slice: Slice, placement: Placement, making: Making, options: AttemptOptions) {
    this.#slice = slice;
    this.#placement = placement;
    this.#making = making;
    this.#options = options;
    const { worker, client, predicted } = placement;
    const { request, limits, gathering } = making;
    this.#maker = `${worker.models.get(request.model)?.digest}${worker.simulated ? " simulated" : ""}`;
    const resumeFrom = gathering.statesOf(slice, this.#maker);
    this.fromNoise = resumeFrom.length === 0;
    gathering.called(worker.id);
    // Whoever looks at checkpoints gets them, worth or not.
    const worthMs = limits.onCheckpoint === undefined ? predicted.workMs : Number.POSITIVE_INFINITY;
    const wanted = limits.checkpointEvery ?? checkpointInterval(request, worthMs);
    const checkpointEvery = options.limits.checkpointEvery ?? wanted;
    const callId = newId(request.id);
    this.#watch = this.#watchForStall();
    this.#call = callWorker(
      client,
      requestToWire(startable(request, worker), { callId, order: limits.order, slice, checkpointEvery, resumeFrom }),
      { deadlineAtMs: limits.deadline.atMs, signal: limits.signal, take: (message) => this.#take(message) },
    );
    this.failed = this.#call.ended.then(
      (failure) => this.#settle(failure),
      (reason) => this.#takenBack(reason),
    );
    this.failed.catch(() => {}); // whoever waits for it hears of it; an attempt that lost the race may have nobody left
  }

  get address(): string {
    return this.#placement.worker.address;
  }

  /** Another attempt has finished the slice. */
  supersede(): void {
    this.#call.takeBack(SUPERSEDED);
  }

  #take(message: GenerateResponse): void {
    this.#watch.heard();
    if (message.event.case === "accepted") {
      this.#accepted = true;
      this.#placement.accepted(message.event.value);
    }
    this.#making.gathering.take(this.#slice, this.#maker, message);
  }

  #settle(failure: ServingError | undefined): Failed | undefined {
    this.#watch.stop();
    const { metrics, log } = this.#options;
    const { request, gathering } = this.#making;
    const { worker } = this.#placement;
    if (failure === SUPERSEDED) {
      metrics.attempts.inc({ outcome: "SUPERSEDED" });
      this.#placement.release(SUPERSEDED); // it says nothing of the worker, nor of its times
      return { error: SUPERSEDED, accepted: this.#accepted };
    }
    // A connection that breaks after the receipt came took nothing from the answer.
    if (gathering.complete(this.#slice)) {
      metrics.attempts.inc({ outcome: "ok" });
      this.#placement.release();
      return undefined;
    }
    const missing = `worker ${worker.id} ended its answer with ${gathering.missingText(this.#slice)}`;
    const error = explain(failure ?? new ServingError("INTERNAL", missing), worker);
    metrics.attempts.inc({ outcome: this.#stalled ? "STALLED" : error.code });
    this.#placement.release(error);
    // What is the caller's to mend is told to the caller; this is for whoever looks after the workers.
    if (error.retryable) {
      log.info({ request: request.id, worker: worker.id, code: error.code, why: error.detail }, "call failed");
    }
    return { error, accepted: this.#accepted };
  }

  /** The request as a whole is over. */
  #takenBack(reason: unknown): never {
    this.#watch.stop();
    this.#options.metrics.attempts.inc({ outcome: reason === SUPERSEDED ? "SUPERSEDED" : "CANCELLED" });
    this.#placement.release(toServingError(reason));
    throw reason;
  }

  #watchForStall(): StallWatch {
    const { clock, fleet, limits } = this.#options;
    const { worker, predicted } = this.#placement;
    return new StallWatch(clock, {
      floorMs: limits.stallMs,
      allowedMs: () => {
        const view = fleet.views().find(({ address }) => address === worker.address);
        return allowedSilenceMs(this.#making.request.model, predicted, view, limits.stallMs);
      },
      onStall: (silentMs) => {
        this.#stalled = true;
        const message = `nothing was heard of the request for ${Math.round(silentMs)} ms`;
        this.#call.takeBack(new ServingError("WORKER_LOST", message));
      },
    });
  }
}
