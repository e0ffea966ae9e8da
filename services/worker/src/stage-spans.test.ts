import type { Attributes, Span } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { StageSpans } from "./stage-spans.ts";
import type { RunReport } from "./threads/denoise.thread.ts";

describe("the spans of a request's stages", () => {
  it("tell of each step batch by when it ran, with whom, and how long it was waited for", () => {
    const { span, lines } = recorded();
    const spans = new StageSpans(span);
    spans.denoiseBegins(0, 1_000, { "atelier.steps": 2 });
    spans.stepped(0, 1, run({ startedAtMs: 1_250, ms: 20, rows: 6, jobs: 3 }));
    spans.stepped(0, 2, run({ startedAtMs: 1_270, ms: 10, rows: 2, jobs: 1 }));
    spans.denoiseEnds(0, { "atelier.preemptions": 0 });
    expect(lines).toEqual([
      'denoise from 1000 {"atelier.image.index":0,"atelier.steps":2}',
      'denoise {"atelier.queue_wait_ms":250}',
      'denoise: step_batch at 1270 {"atelier.step.index":1,"atelier.step.rows":6,"atelier.step.ms":20,"atelier.step.batch_mates":2,"atelier.step.lane":"0"}',
      'denoise: step_batch at 1280 {"atelier.step.index":2,"atelier.step.rows":2,"atelier.step.ms":10,"atelier.step.batch_mates":0,"atelier.step.lane":"0"}',
      'denoise {"atelier.preemptions":0}',
      "denoise ends",
    ]);
  });

  it("keep the first 200 step batches of a picture, and count the others", () => {
    const { span, lines } = recorded();
    const spans = new StageSpans(span);
    spans.denoiseBegins(0, 0, {});
    for (let step = 1; step <= 230; step++) spans.stepped(0, step, run({ startedAtMs: step, ms: 1, rows: 2, jobs: 1 }));
    spans.denoiseEnds(0, {});
    expect(lines.filter((line) => line.includes("step_batch"))).toHaveLength(200);
    expect(lines.at(-2)).toBe('denoise {"atelier.step.events_left_out":30}');
  });

  it("end with the request that fails, and with nothing after it", () => {
    const { span, lines } = recorded();
    const spans = new StageSpans(span);
    spans.denoiseBegins(0, 0, {});
    spans.close(new Error("lost"));
    spans.stepped(0, 1, run({ startedAtMs: 1, ms: 1, rows: 2, jobs: 1 }));
    expect(lines.slice(1)).toEqual(["denoise fails: lost", "denoise {}", "denoise ends"]);
  });

  it("cost nothing where nothing is recorded", () => {
    const spans = new StageSpans();
    spans.denoiseBegins(0, 0, {});
    spans.stepped(0, 1, run({ startedAtMs: 1, ms: 1, rows: 2, jobs: 1 }));
    spans.denoiseEnds(0, {});
    expect(spans.imageDecode(0).recording).toBe(false);
  });
});

function run({ startedAtMs, ms, rows, jobs }: { startedAtMs: number; ms: number; rows: number; jobs: number }) {
  const steps = Array.from({ length: jobs }, (_, i) => ({ id: `r#${i}`, stepsDone: 1 }));
  return { startedAtMs, ms, rows, lane: "0", steps } as unknown as RunReport;
}

/** A span that writes down what is done with it and with its children. */
function recorded(): { span: Span; lines: string[] } {
  const lines: string[] = [];
  const named = (name: string): Span => ({
    recording: true,
    traceId: "t",
    context: undefined,
    child: (child, { startMs, attributes } = {}) => {
      lines.push(`${child} from ${startMs} ${JSON.stringify(attributes)}`);
      return named(child);
    },
    set: (attributes: Attributes) => void lines.push(`${name} ${JSON.stringify(attributes)}`),
    event: (event, attributes, atMs) => void lines.push(`${name}: ${event} at ${atMs} ${JSON.stringify(attributes)}`),
    link: () => {},
    fail: (error) => void lines.push(`${name} fails: ${(error as Error).message}`),
    end: () => void lines.push(`${name} ends`),
  });
  return { span: named("request"), lines };
}
