import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { StageName } from "./image-request.ts";
import { ProgressThrottle } from "./progress-throttle.ts";

describe("ProgressThrottle, at 100 ms", () => {
  it("sends the first at once and then the newest of each interval", () => {
    const { throttle, clock, sent } = throttled();
    for (let step = 1; step <= 25; step++) {
      throttle.offer(report("denoise", step));
      clock.advance(20);
    }
    clock.advance(1_000);
    expect(sent).toEqual(["denoise 1", "denoise 5", "denoise 10", "denoise 15", "denoise 20", "denoise 25"]);
  });

  it("sends the last of a stage before the first of the next", () => {
    const { throttle, clock, sent } = throttled();
    throttle.offer(report("text_encode", 0));
    for (const step of [1, 2, 3]) throttle.offer(report("denoise", step));
    throttle.offer(report("image_decode", 3));
    clock.advance(1_000);
    expect(sent).toEqual(["text_encode 0", "denoise 3", "image_decode 3"]);
  });

  it("sends what it holds when the request ends, and nothing after that", () => {
    const { throttle, clock, sent } = throttled();
    throttle.offer(report("denoise", 1));
    throttle.offer(report("denoise", 2));
    throttle.finish();
    expect(sent).toEqual(["denoise 1", "denoise 2"]);
    clock.advance(1_000);
    expect(sent).toHaveLength(2);
  });

  it("drops all but the newest of each stage while nothing is welcome, and goes on afterwards", () => {
    const { throttle, clock, sent, socket } = throttled();
    socket.full = true;
    for (let step = 0; step < 1_000; step++) {
      throttle.offer(report("denoise", step));
      clock.advance(50);
    }
    throttle.offer(report("image_decode", 1_000));
    expect(sent).toEqual(["denoise 0"]);

    socket.full = false;
    throttle.resume();
    clock.advance(100);
    expect(sent).toEqual(["denoise 0", "denoise 999", "image_decode 1000"]);
  });

  it("sends the newest preview of each picture behind progress, and none at the end", () => {
    const { throttle, clock, sent } = throttled();
    throttle.offer(report("denoise", 1));
    throttle.offerPreview(preview(0, 1)); // its progress is out: so is it
    for (const step of [2, 3, 4]) {
      throttle.offer(report("denoise", step));
      throttle.offerPreview(preview(step % 2, step));
    }
    expect(sent).toEqual(["denoise 1", "preview of 0 at 1"]);
    clock.advance(100);
    expect(sent.slice(2)).toEqual(["denoise 4", "preview of 0 at 4", "preview of 1 at 3"]);

    throttle.offer(report("denoise", 5));
    throttle.offerPreview(preview(1, 5));
    throttle.finish();
    expect(sent.slice(5)).toEqual(["denoise 5"]);
  });

  it("keeps the newest preview while nothing is welcome", () => {
    const { throttle, clock, sent, socket } = throttled();
    socket.full = true;
    for (let step = 0; step < 100; step++) {
      throttle.offer(report("denoise", step));
      throttle.offerPreview(preview(0, step));
      clock.advance(50);
    }
    expect(sent).toEqual(["denoise 0"]);
    socket.full = false;
    throttle.resume();
    clock.advance(100);
    expect(sent.slice(1)).toEqual(["denoise 99", "preview of 0 at 99"]);
  });

  it("does not hold back the last reports of a request because nothing is welcome", () => {
    const { throttle, sent, socket } = throttled();
    socket.full = true;
    throttle.offer(report("denoise", 1));
    throttle.offer(report("denoise", 2));
    throttle.finish();
    expect(sent).toEqual(["denoise 1", "denoise 2"]);
  });
});

function throttled() {
  const clock = new ManualClock();
  const sent: string[] = [];
  const socket = { full: false };
  const throttle = new ProgressThrottle({
    clock,
    intervalMs: 100,
    send: ({ stage, stepsDone }) => {
      sent.push(`${stage} ${stepsDone}`);
      return !socket.full;
    },
    sendPreview: ({ imageIndex, stepsDone }) => {
      sent.push(`preview of ${imageIndex} at ${stepsDone}`);
      return !socket.full;
    },
  });
  return { clock, sent, socket, throttle };
}

const report = (stage: StageName, stepsDone: number) => ({ stage, stepsDone, stepsTotal: 25, imageIndex: 0 });

const preview = (imageIndex: number, stepsDone: number) => ({
  imageIndex,
  stepsDone,
  stepsTotal: 25,
  data: new Uint8Array(),
});
