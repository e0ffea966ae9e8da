import type { ExactCache, Peeked } from "../cache/exact-cache.ts";
import type { Caller } from "../caller.ts";
import { withSeed } from "../complete-request.ts";
import type { Generations } from "../generations/generations.ts";
import { orderOf } from "../generations/generations.ts";
import type { GenerationContext } from "../generations/ports.ts";
import type { CompleteRequest, ImageRequestDraft } from "../image-request.ts";
import type { Placer, Prediction } from "../placement/placer.ts";
import type { TenantDirectory } from "./directory.ts";
import { costMicros, priceFor, type Tariff } from "./tariff.ts";

/** What a request would come to if it were made now. Nothing is made, counted or booked for it. */
export interface Estimate {
  /** With its defaults. */
  readonly request: CompleteRequest;
  readonly predicted: Prediction;
  /** Undefined where no results are kept. */
  readonly cache: Peeked | undefined;
  readonly cost: CostEstimate;
}

export interface CostEstimate {
  readonly currency: string;
  readonly pricePerDeviceHour: number;
  /** Of all its pictures, made anew; from a cache they cost nothing. */
  readonly amount: number;
  readonly perImage: number;
}

export interface EstimatorOptions {
  readonly generations: Pick<Generations, "complete">;
  readonly placer: Pick<Placer, "predict">;
  /** Undefined where no results are kept. */
  readonly cache: Pick<ExactCache, "peek"> | undefined;
  readonly directory: Pick<TenantDirectory, "tenant">;
  readonly tariff: Tariff;
}

/** Dry runs. */
export class Estimator {
  readonly #options: EstimatorOptions;

  constructor(options: EstimatorOptions) {
    this.#options = options;
  }

  /** Rejects with ServingError as the request itself would before it is made: its fields, its model, its rights, NO_WORKER. */
  async estimate(draft: ImageRequestDraft, context: Pick<GenerationContext, "caller" | "priority">): Promise<Estimate> {
    const { generations, placer, cache } = this.#options;
    const order = orderOf(context);
    const request = generations.complete(draft, context.caller);
    const predicted = placer.predict(withSeed(request, request.seed ?? 0), order);
    const cost = this.#cost(request, predicted, context.caller);
    return { request, predicted, cache: await cache?.peek(request, context.caller.tenant), cost };
  }

  #cost({ numImages }: CompleteRequest, { workMs }: Prediction, { tenant }: Caller): CostEstimate {
    const { directory, tariff } = this.#options;
    const pricePerDeviceHour = priceFor(directory.tenant(tenant), tariff);
    const amount = costMicros(workMs, pricePerDeviceHour) / 1e6;
    return { currency: tariff.currency, pricePerDeviceHour, amount, perImage: amount / numImages };
  }
}
