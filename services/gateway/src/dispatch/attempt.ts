import { type Clock, newId, ServingError, toServingError } from "@atelier/core";
import { type GenerateResponse, WorkerService } from "@atelier/proto";
import { currentRequestId, currentSpan, type Logger, type Span, type TraceContext } from "@atelier/telemetry";
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
  /** Its span, for the attempt that follows. */
  readonly trace: TraceContext | undefined;
}

/** What an attempt has to do with one before. */
export interface Follows {
  /** In its place, or beside it. */
  readonly kind: "retry" | "hedge";
  /** Undefined: there is none. */
  readonly of: TraceContext | undefined;
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

const GENERATE_SPAN = `${WorkerService.typeName}/Generate`;

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
  readonly #span: Span;
  #accepted = false;
  #stalled = false;

  constructor(slice: Slice, placement: Placement, making: Making, options: AttemptOptions, follows?: Follows) {
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
    this.#span = currentSpan().child(GENERATE_SPAN, { kind: "client", links: [follows?.of] });
    if (this.#span.recording) {
      this.#span.set({
        "rpc.system": "grpc",
        "rpc.service": WorkerService.typeName,
        "rpc.method": "Generate",
        "server.address": worker.address,
        "atelier.worker.id": worker.id,
        "atelier.call_id": callId,
        "atelier.attempt.kind": follows?.of === undefined ? "first" : follows.kind,
        "atelier.image.first": slice.first,
        "atelier.images": slice.count,
        "atelier.resumed_states": resumeFrom.length,
      });
    }
    this.#watch = this.#watchForStall();
    this.#call = callWorker(
      client,
      requestToWire(startable(request, worker), { callId, order: limits.order, slice, checkpointEvery, resumeFrom }),
      {
        deadlineAtMs: limits.deadline.atMs,
        context: { requestId: currentRequestId(), trace: this.#span.context },
        signal: limits.signal,
        take: (message) => this.#take(message),
      },
    );
    this.failed = this.#call.ended.then(
      (failure) => this.#settle(failure),
      (reason) => this.#takenBack(reason),
    );
    this.failed.catch(() => {}); // whoever waits for it hears of it; an attempt that lost the race may have nobody left
  }

  get trace(): TraceContext | undefined {
    return this.#span.context;
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
      this.#span.event("accepted");
      this.#placement.accepted(message.event.value);
    }
    this.#making.gathering.take(this.#slice, this.#maker, message);
  }

  #settle(failure: ServingError | undefined): Failed | undefined {
    this.#watch.stop();
    const { metrics, log } = this.#options;
    const { request, gathering } = this.#making;
    const { worker } = this.#placement;
    const failed = (error: ServingError): Failed => {
      this.#span.fail(error);
      this.#span.end();
      return { error, accepted: this.#accepted, trace: this.#span.context };
    };
    if (failure === SUPERSEDED) {
      metrics.attempts.inc({ outcome: "SUPERSEDED" });
      this.#placement.release(SUPERSEDED); // it says nothing of the worker, nor of its times
      this.#span.set({ "atelier.superseded": true });
      return failed(SUPERSEDED);
    }
    // A connection that breaks after the receipt came took nothing from the answer.
    if (gathering.complete(this.#slice)) {
      metrics.attempts.inc({ outcome: "ok" });
      this.#placement.release();
      this.#span.end();
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
    if (this.#stalled) this.#span.set({ "atelier.stalled": true });
    return failed(error);
  }

  /** The request as a whole is over. */
  #takenBack(reason: unknown): never {
    this.#watch.stop();
    this.#options.metrics.attempts.inc({ outcome: reason === SUPERSEDED ? "SUPERSEDED" : "CANCELLED" });
    this.#placement.release(toServingError(reason));
    this.#span.fail(reason);
    this.#span.end();
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
