import { type Clock, ServingError } from "@atelier/core";
import { addLogFields, currentTraceId, type Logger, traced } from "@atelier/telemetry";
import { type Caller, PRIORITY_CLASSES } from "../caller.ts";
import { completeRequest } from "../complete-request.ts";
import type { Dispatcher } from "../dispatch/dispatcher.ts";
import type { Fleet } from "../fleet/fleet.ts";
import type {
  CompleteRequest,
  Generation,
  GenerationEvent,
  ImageRequest,
  ImageRequestDraft,
} from "../image-request.ts";
import type { InFlight } from "../in-flight.ts";
import type { GenerationMetrics } from "../metrics.ts";
import type { ModelAliases } from "../model-aliases.ts";
import { checkAllowed, viewsFor } from "../tenants/allow-lists.ts";
import type {
  Admission,
  GenerationContext,
  MakeLimits,
  ResultCache,
  Served,
  ServiceOrder,
  SimilarStarts,
  TenantLimits,
} from "./ports.ts";

export interface GenerationsOptions {
  readonly fleet: Pick<Fleet, "views">;
  readonly aliases: Pick<ModelAliases, "resolve">;
  readonly inFlight: InFlight;
  readonly tenantLimits: TenantLimits;
  readonly cache: ResultCache;
  readonly similarStarts: SimilarStarts;
  readonly admission: Admission;
  readonly dispatcher: Pick<Dispatcher, "generate">;
  readonly metrics: GenerationMetrics;
  readonly clock: Clock;
  /** Told what is asked for, which it shows as far as its policy allows. */
  readonly log?: Pick<Logger, "debug">;
}

/** The way of every request for pictures, whatever the dialect that it came in. */
export class Generations {
  readonly #options: GenerationsOptions;

  constructor(options: GenerationsOptions) {
    this.#options = options;
  }

  /** complete -> the tenant's limits -> cache and single-flight -> admission -> dispatch. Rejects with a ServingError. */
  async run(draft: ImageRequestDraft, context: GenerationContext): Promise<Served> {
    const { inFlight, tenantLimits, cache, similarStarts, admission, metrics, clock } = this.#options;
    const cameAtMs = clock.nowMs();
    const traceId = currentTraceId(); // events come from connections, which belong to no request
    const order = orderOf(context);
    const asked = admission.adjust(this.complete(draft, context.caller), order);

    const place = inFlight.enter();
    try {
      const tenant = await tenantLimits.enter(context.caller, asked, context.onStanding);
      let served: Served | undefined;
      try {
        const signal = AbortSignal.any([context.signal, place.signal, tenant.signal]);
        signal.throwIfAborted();
        const use = { ...context.cache, approximate: similarStarts.allowed(context.cache) };
        addLogFields({ model: asked.model });
        this.#options.log?.debug(
          { prompt: asked.prompt, negative_prompt: asked.negativePrompt, width: asked.width, height: asked.height },
          "generation asked for",
        );
        const onEvent = tellFirstStep(context.onEvent, () =>
          metrics.firstStep(order.priority, clock.nowMs() - cameAtMs, traceId),
        );
        served = await cache.serve(asked, { ...context, onEvent, order, signal, cache: use }, (image, limits) =>
          similarStarts.make(image, limits, use, (begun, within) => this.#make(begun, within)),
        );
        context.onServed?.(served.outcome);
        const { receipt, pictures } = served.generation;
        addLogFields({ cache: served.outcome });
        metrics.images.inc(
          { model: receipt.model, format: asked.format, simulated: String(receipt.simulated) },
          pictures.length,
        );
        return served;
      } finally {
        tenant.leave(served);
      }
    } finally {
      place.leave();
    }
  }

  /**
   * The request as it would be taken in: with the defaults of the models that the caller may use.
   *
   * @throws ServingError as completeRequest does, FORBIDDEN where it names a model or adapter that is not for the caller.
   */
  complete(draft: ImageRequestDraft, caller: Caller): CompleteRequest {
    const { fleet, aliases } = this.#options;
    const views = fleet.views();
    const named = { ...draft, model: aliases.resolve(draft.model, views) };
    checkAllowed(caller, named);
    return completeRequest(named, viewsFor(caller, views));
  }

  /** Whoever waits for it, a picture is made once, and waits once. */
  #watchQueue({ order, onEvent }: MakeLimits): (event: GenerationEvent) => void {
    const { metrics, clock } = this.#options;
    const traceId = currentTraceId();
    let acceptedAtMs: number | undefined;
    const passOn = tellFirstStep(onEvent, () => {
      if (acceptedAtMs !== undefined) metrics.queueWait(order.priority, clock.nowMs() - acceptedAtMs, traceId);
    });
    return (event) => {
      if (event.type === "accepted") acceptedAtMs = clock.nowMs();
      passOn(event);
    };
  }

  async #make(image: ImageRequest, limits: MakeLimits): Promise<Generation> {
    const ticket = traced("admission", () => this.#options.admission.enter(image, limits));
    try {
      return await this.#options.dispatcher.generate(image, { ...limits, onEvent: this.#watchQueue(limits) });
    } finally {
      ticket.leave();
    }
  }
}

/** What `onEvent` is told, and the first step that was made besides. */
function tellFirstStep(onEvent: MakeLimits["onEvent"], made: () => void): (event: GenerationEvent) => void {
  let begun = false;
  return (event) => {
    if (!begun && event.type === "progress" && event.stage === "denoise") {
      begun = true;
      made();
    }
    onEvent?.(event);
  };
}

/** @throws ServingError FORBIDDEN where the caller asks for a more urgent class than its own. */
export function orderOf({
  caller,
  priority = caller.priority,
}: Pick<GenerationContext, "caller" | "priority">): ServiceOrder {
  if (PRIORITY_CLASSES.indexOf(priority) < PRIORITY_CLASSES.indexOf(caller.priority)) {
    const message = `priority is "${priority}", but this key's requests are at most "${caller.priority}"`;
    throw new ServingError("FORBIDDEN", message, { field: "priority" });
  }
  return { priority, tenant: caller.tenant, ...(caller.weight !== undefined && { weight: caller.weight }) };
}
