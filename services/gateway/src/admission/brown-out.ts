import type { Clock } from "@atelier/core";
import type { CompleteRequest } from "../image-request.ts";
import type { SamplerName } from "../samplers.ts";

/** From the least that is taken away to the most: which share of a request's steps is left, and whether a fast sampler replaces a slow one. */
const LEVELS = [
  { stepsShare: 0.75, fastSampler: false },
  { stepsShare: 0.5, fastSampler: true },
] as const;

/** Fewer than so many show in any picture. */
const STEPS_MIN = 8;
/** A level is kept for so long, or requests at its edge would be made, and cached, now so and now so. */
const LEVEL_KEPT_MS = 5_000;
/** Those that need many steps, or two predictions for each. Of the rest all look good after ten or twelve. */
const SLOW_SAMPLERS: ReadonlySet<SamplerName> = new Set(["ddim", "euler_a", "dpmpp_2m_sde"]);
const FAST_SAMPLER: SamplerName = "dpmpp_2m";

/**
 * Asks less of requests while there is more to do than can be done: fewer steps first, then fewer still and a sampler that
 * needs fewer. What was taken away is on the request, for the answer to say so. A request that names its seed, or starts
 * from a picture, asks for one certain result and is left as it is.
 */
export class BrownOut {
  readonly #clock: Clock;
  readonly #afterMs: number;
  #level = 0;
  #changedAtMs = Number.NEGATIVE_INFINITY;

  /** @param afterMs predicted wait from which the first level holds; the second holds from twice as much. */
  constructor({ clock, afterMs }: { clock: Clock; afterMs: number }) {
    this.#clock = clock;
    this.#afterMs = afterMs;
  }

  /** 0: nothing is taken away. */
  get level(): number {
    return this.#level;
  }

  apply(asked: CompleteRequest, predictedWaitMs: number): CompleteRequest {
    this.#follow(predictedWaitMs);
    const level = LEVELS[this.#level - 1];
    if (level === undefined || asked.seed !== undefined || asked.initPicture !== undefined) return asked;
    const steps = Math.max(Math.min(STEPS_MIN, asked.steps), Math.round(asked.steps * level.stepsShare));
    const sampler = level.fastSampler && SLOW_SAMPLERS.has(asked.sampler) ? FAST_SAMPLER : asked.sampler;
    if (steps === asked.steps && sampler === asked.sampler) return asked;
    return {
      ...asked,
      steps,
      sampler,
      reduced: {
        ...(steps !== asked.steps && { steps: asked.steps }),
        ...(sampler !== asked.sampler && { sampler: asked.sampler }),
      },
    };
  }

  /** More is taken away at once; back it goes by one level at a time. */
  #follow(waitMs: number): void {
    const wanted = waitMs >= 2 * this.#afterMs ? 2 : waitMs >= this.#afterMs ? 1 : 0;
    const nowMs = this.#clock.nowMs();
    if (wanted >= this.#level) {
      if (wanted > this.#level || wanted > 0) this.#changedAtMs = nowMs;
      this.#level = wanted;
    } else if (nowMs - this.#changedAtMs >= LEVEL_KEPT_MS) {
      this.#level -= 1;
      this.#changedAtMs = nowMs;
    }
  }
}
