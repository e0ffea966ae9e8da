import { type Clock, Deadline, newId, ServingError } from "@atelier/core";
import { readStrictly } from "@atelier/http";
import {
  type CancelGenerationRequest,
  CancelGenerationResponseSchema,
  type CreateGenerationRequest,
  type GenerationEvent,
  GenerationEventSchema,
  type GetGenerationRequest,
  GetGenerationResponseSchema,
  ListModelsResponseSchema,
} from "@atelier/proto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { ServerUnaryCall, ServerWritableStream } from "@grpc/grpc-js";
import type { BackgroundGenerations } from "../background/background-generations.ts";
import type { Caller } from "../caller.ts";
import { draftFromGeneration, type GenerationBody, generationBody, limitsFromBody } from "../dialects/generations.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type { Generations } from "../generations/generations.ts";
import type { GenerationContext } from "../generations/ports.ts";
import { checkNoPreviews } from "../http/choose-reply.ts";
import { cacheUseOf } from "../http/generation-edge.ts";
import type { ImageRequestDraft } from "../image-request.ts";
import { ProgressThrottle } from "../progress-throttle.ts";
import { catalogFor } from "../tenants/allow-lists.ts";
import {
  bodyFromWire,
  completedToWire,
  modelToWire,
  previewToWire,
  progressToWire,
  stateToWire,
} from "./generation-wire.ts";

export interface GenerationServiceOptions {
  readonly generations: Pick<Generations, "run">;
  readonly background: BackgroundGenerations;
  readonly fleet: Pick<Fleet, "views">;
  readonly clock: Clock;
  readonly requestTimeoutMs: number;
}

export type CreateCall = ServerWritableStream<CreateGenerationRequest, GenerationEvent>;

type EventInit = NonNullable<MessageInitShape<typeof GenerationEventSchema>["event"]>;

/** Ten a second look like movement to a person. */
const PROGRESS_INTERVAL_MS = 100;
const QUEUED_AFTER_MS = 250;
const WAIT_MAX_MS = 30_000;

/** The calls of atelier.v1.Generation, once it is known who calls. Each rejects with a ServingError. */
export class GenerationService {
  readonly #options: GenerationServiceOptions;

  constructor(options: GenerationServiceOptions) {
    this.#options = options;
  }

  async create(call: CreateCall, caller: Caller, onServed?: GenerationContext["onServed"]): Promise<void> {
    const { background } = this.#options;
    const body = readStrictly(generationBody, bodyFromWire(call.request)) as GenerationBody;
    const draft = draftFromGeneration(body, { id: newId("gen"), format: body.format ?? "png" });
    const { priority, cache, deadlineMs } = limitsFromBody(body);
    const limits = {
      caller,
      deadline: this.#deadlineOf(call.request.background ? undefined : call.getDeadline(), deadlineMs),
      priority,
      cache: { ...cacheUseOf(undefined), ...cache },
      onServed,
    };
    if (!call.request.background) return this.#stream(call, draft, limits);
    checkNoPreviews(body);
    const record = await background.start(draft, limits);
    call.write(eventOf({ case: "started", value: stateToWire(record) }));
  }

  async get({ request: { id, waitMs, withImages } }: ServerUnaryCall<GetGenerationRequest, unknown>, caller: Caller) {
    const { background } = this.#options;
    const record = await background.wait(id, caller.tenant, Math.min(waitMs, WAIT_MAX_MS));
    const count = withImages ? (record.result?.pictures.length ?? 0) : 0;
    const images = await Promise.all(
      Array.from({ length: count }, async (_, imageIndex) => {
        const { picture } = await background.picture(id, caller.tenant, imageIndex);
        return { ...picture, imageIndex, seed: BigInt(picture.seed) };
      }),
    );
    return create(GetGenerationResponseSchema, { state: stateToWire(record), images });
  }

  async cancel({ request: { id } }: ServerUnaryCall<CancelGenerationRequest, unknown>, caller: Caller) {
    const record = await this.#options.background.cancel(id, caller.tenant);
    return create(CancelGenerationResponseSchema, { state: stateToWire(record) });
  }

  async listModels(_call: unknown, caller: Caller) {
    const models = catalogFor(caller, this.#options.fleet.views()).map(modelToWire);
    return create(ListModelsResponseSchema, { models });
  }

  async #stream(call: CreateCall, draft: ImageRequestDraft, limits: Omit<GenerationContext, "signal">): Promise<void> {
    const { clock, generations } = this.#options;
    const { id } = draft;
    const send = (event: EventInit) => call.write(eventOf(event));
    const gone = new AbortController();
    const leave = () => gone.abort(callEnded(limits.deadline));
    if (call.cancelled) leave();
    else call.on("cancelled", leave);
    const progress = new ProgressThrottle({
      clock,
      intervalMs: PROGRESS_INTERVAL_MS,
      send: (report) => send(progressToWire(report)),
      sendPreview: (preview) => send(previewToWire(preview)),
    });
    call.on("drain", () => progress.resume());
    const cancelQueued = clock.after(QUEUED_AFTER_MS, () => send({ case: "queued", value: { id } }));
    try {
      const served = await generations.run(draft, {
        ...limits,
        signal: gone.signal,
        onEvent: (event) => {
          if (event.type === "progress") return progress.offer(event);
          if (event.type === "preview") return progress.offerPreview(event);
          cancelQueued();
          const { seed, model, stepsTotal } = event;
          send({ case: "accepted", value: { id, seed: BigInt(seed), model, stepsTotal } });
        },
      });
      progress.finish();
      const { pictures, receipt } = served.generation;
      for (const [imageIndex, picture] of pictures.entries()) {
        send({ case: "image", value: { ...picture, imageIndex, seed: BigInt(picture.seed) } });
      }
      send({ case: "completed", value: completedToWire(id, { receipt, outcome: served.outcome }) });
    } finally {
      cancelQueued();
      progress.finish();
    }
  }

  #deadlineOf(stated: Date | number | undefined, deadlineMs: number | undefined): Deadline {
    const { clock, requestTimeoutMs } = this.#options;
    const latestMs = clock.nowMs() + Math.min(deadlineMs ?? requestTimeoutMs, requestTimeoutMs);
    const statedMs = stated instanceof Date ? stated.getTime() : (stated ?? Number.POSITIVE_INFINITY);
    return new Deadline(clock, Math.min(statedMs, latestMs));
  }
}

function eventOf(event: EventInit): GenerationEvent {
  return create(GenerationEventSchema, { event });
}

/** grpc-js tells an expired call and one that was taken back in the same way. */
function callEnded(deadline: Deadline): ServingError {
  if (deadline.passed) return new ServingError("DEADLINE_EXCEEDED", "the call's deadline passed");
  return new ServingError("CANCELLED", "the caller went away or took the request back");
}
