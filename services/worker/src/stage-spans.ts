import { NO_SPAN, type Span } from "@atelier/telemetry";
import type { RunReport } from "./threads/denoise.thread.ts";

/** Events on one picture's denoise span; a generation of more steps counts what it leaves out. */
const STEP_EVENTS_MAX = 200;

/**
 * What a trace shows of a request on its way through the stages. The stages' threads know nothing of it: it is told
 * afterwards, from what they report.
 */
export class StageSpans {
  readonly #request: Span;
  readonly #images = new Map<number, DenoiseSpan>();

  /** `request`: the span of the call, or of the item. */
  constructor(request: Span = NO_SPAN) {
    this.#request = request;
  }

  /** A stage that is over, at a time of its own. */
  stage(
    name: "model_wait" | "text_encode" | "image_encode",
    { startMs, endMs }: { readonly startMs: number; readonly endMs: number },
    attributes: Parameters<Span["set"]>[0] = {},
  ): void {
    if (this.#request.recording) this.#request.child(name, { startMs, attributes }).end(endMs);
  }

  /** A picture waits for its first step from now on. */
  denoiseBegins(imageIndex: number, startMs: number, attributes: Parameters<Span["set"]>[0]): void {
    if (!this.#request.recording) return;
    this.#images.set(imageIndex, {
      span: this.#request.child("denoise", {
        startMs,
        attributes: { "atelier.image.index": imageIndex, ...attributes },
      }),
      startMs,
      events: 0,
      leftOut: 0,
    });
  }

  /** A picture had a part in a run of the U-Net. */
  stepped(imageIndex: number, stepsDone: number, report: RunReport): void {
    const image = this.#images.get(imageIndex);
    if (image === undefined) return;
    if (image.events === 0)
      image.span.set({ "atelier.queue_wait_ms": Math.max(0, report.startedAtMs - image.startMs) });
    if (image.events >= STEP_EVENTS_MAX) {
      image.leftOut += 1;
      return;
    }
    image.events += 1;
    image.span.event(
      "step_batch",
      {
        "atelier.step.index": stepsDone,
        "atelier.step.rows": report.rows,
        "atelier.step.ms": Math.round(report.ms * 1000) / 1000,
        "atelier.step.batch_mates": report.steps.length - 1,
        "atelier.step.lane": report.lane,
      },
      report.startedAtMs + report.ms,
    );
  }

  denoiseEnds(imageIndex: number, attributes: Parameters<Span["set"]>[0]): void {
    const image = this.#images.get(imageIndex);
    if (image === undefined) return;
    image.span.set({ ...attributes, ...(image.leftOut > 0 && { "atelier.step.events_left_out": image.leftOut }) });
    image.span.end();
    this.#images.delete(imageIndex);
  }

  imageDecode(imageIndex: number): Span {
    return this.#request.child("image_decode", { attributes: { "atelier.image.index": imageIndex } });
  }

  /** The request is over: what had begun of it ends with it. */
  close(error: unknown): void {
    for (const imageIndex of [...this.#images.keys()]) {
      this.#images.get(imageIndex)?.span.fail(error);
      this.denoiseEnds(imageIndex, {});
    }
  }
}

interface DenoiseSpan {
  readonly span: Span;
  readonly startMs: number;
  events: number;
  /** Beyond the limit. */
  leftOut: number;
}
