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
  readonly directory: Pick<TenantDirectory, "tenant">;
  readonly tariff: Tariff;
}

/** Dry runs. */
export class Estimator {
  readonly #options: EstimatorOptions;

  constructor(options: EstimatorOptions) {
    this.#options = options;
  }

  /** @throws ServingError as the request itself would before it is made: its fields, its model, its rights, NO_WORKER. */
  estimate(draft: ImageRequestDraft, context: Pick<GenerationContext, "caller" | "priority">): Estimate {
    const { generations, placer } = this.#options;
    const order = orderOf(context);
    const request = generations.complete(draft, context.caller);
    const predicted = placer.predict(withSeed(request, request.seed ?? 0), order);
    return { request, predicted, cost: this.#cost(request, predicted, context.caller) };
  }

  #cost({ numImages }: CompleteRequest, { workMs }: Prediction, { tenant }: Caller): CostEstimate {
    const { directory, tariff } = this.#options;
    const pricePerDeviceHour = priceFor(directory.tenant(tenant), tariff);
    const amount = costMicros(workMs, pricePerDeviceHour) / 1e6;
    return { currency: tariff.currency, pricePerDeviceHour, amount, perImage: amount / numImages };
  }
}
