import type { Clock } from "@atelier/core";
import type { Preview, StageProgress } from "./image-request.ts";

export interface ProgressThrottleOptions {
  readonly clock: Clock;
  /** At least this long between two of one stage. */
  readonly intervalMs: number;
  /** Passes one on. False says that no more is welcome until `resume()`. */
  readonly send: (progress: StageProgress) => boolean;
  /** Passes a preview on, as `send` does. */
  readonly sendPreview?: (preview: Preview) => boolean;
}

/**
 * Thins out the progress of one request to what a person can see and a slow socket can carry. A newer report replaces
 * an older one of its stage that is still held, so what waits is bounded by the number of stages, and the last report
 * of each stage always goes out: no bar stays at 24 of 25.
 *
 * Previews go out behind the progress that follows them, at most one of each picture and the newest. None is kept for
 * the end: the pictures themselves follow.
 */
export class ProgressThrottle {
  readonly #options: ProgressThrottleOptions;
  /** At most one of each stage, oldest first: all but the newest are the last of their stage. */
  #held: StageProgress[] = [];
  /** The newest of each picture, by its index. */
  readonly #previews = new Map<number, Preview>();
  #welcome = true;
  #sentAtMs = Number.NEGATIVE_INFINITY;
  #cancelTimer: (() => void) | undefined;

  constructor(options: ProgressThrottleOptions) {
    this.#options = options;
  }

  offer(progress: StageProgress): void {
    this.#held = [...this.#held.filter(({ stage }) => stage !== progress.stage), progress];
    this.#sendDue();
  }

  /** Held until progress is sent next, which its step is told of with. */
  offerPreview(preview: Preview): void {
    this.#previews.set(preview.imageIndex, preview);
    if (this.#held.length === 0) this.#sendPreviews(); // its own progress has just gone out
  }

  /** More is welcome again. */
  resume(): void {
    this.#welcome = true;
    this.#sendDue();
  }

  /** Sends what is held, welcome or not (it is little), for the result follows; nothing is sent by itself afterwards. */
  finish(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#previews.clear();
    for (const progress of this.#held.splice(0)) this.#options.send(progress);
  }

  #sendDue(): void {
    const { clock, intervalMs } = this.#options;
    while (this.#welcome && this.#held.length > 1) this.#sendOldest();
    if (!this.#welcome || this.#held.length === 0) return;

    const waitMs = this.#sentAtMs + intervalMs - clock.nowMs();
    if (waitMs <= 0) this.#sendOldest();
    else {
      this.#cancelTimer ??= clock.after(waitMs, () => {
        this.#cancelTimer = undefined;
        this.#sendDue();
      });
    }
  }

  #sendOldest(): void {
    this.#sentAtMs = this.#options.clock.nowMs();
    this.#welcome = this.#options.send(this.#held.shift()!);
    this.#sendPreviews();
  }

  #sendPreviews(): void {
    for (const [imageIndex, preview] of this.#previews) {
      if (!this.#welcome) return;
      this.#previews.delete(imageIndex);
      this.#welcome = this.#options.sendPreview?.(preview) ?? true;
    }
  }
}
