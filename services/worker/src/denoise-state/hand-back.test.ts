import { Deadline, ServingError, systemClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { GenerationEvent } from "../generation.ts";
import { createPipeline } from "../pipeline.ts";
import type { GenerationRequest } from "../request.ts";
import { TEST_BUNDLE } from "../testing/test-bundle.ts";
import type { MovedImage } from "./denoise-state.ts";

describe("a pipeline that hands its images back", () => {
  // Its caller had the state already, but Drain's answer was to have every image that is not finished.
  it("hands an image on that came from elsewhere and has not begun here", async () => {
    const pipeline = await createPipeline({
      bundleDirs: [TEST_BUNDLE],
      device: { kind: "onnx", provider: "cpu", threads: 1 },
      limits: { queueMax: 2, stepBatchMax: 1 },
      onFatal: (error) => {
        throw error;
      },
    });
    const generate = (change: Partial<GenerationRequest>, onEvent: (event: GenerationEvent) => void) =>
      pipeline.generate(
        { ...REQUEST, ...change },
        { signal: new AbortController().signal, deadline: Deadline.after(systemClock, 60_000), onEvent },
      );

    const begun = new Map<number, MovedImage>();
    await generate({ checkpointEverySteps: 2 }, (event) => {
      if (event.type === "checkpoint") begun.set(event.imageIndex, event.image);
    });
    const handedBack = new Map<number, MovedImage>();
    const leaving = new ServingError("DRAINING", "leaving");
    const resumed = generate({ resumeFrom: begun }, (event) => {
      if (event.type === "accepted") pipeline.handBack(leaving); // before its text is encoded
      if (event.type === "checkpoint") handedBack.set(event.imageIndex, event.image);
    });
    await expect(resumed).rejects.toBe(leaving);
    expect(begun.size).toBe(1);
    expect(handedBack).toEqual(begun);
    await pipeline.close();
  });
});

const REQUEST: GenerationRequest = {
  id: "request",
  model: "atelier-tiny",
  prompt: "a red mug",
  negativePrompt: "",
  width: 128,
  height: 128,
  steps: 3,
  guidanceScale: 1,
  sampler: "dpmpp_2m",
  karras: false,
  seed: 11n,
  numImages: 1,
  encoding: { format: "png", quality: 90 },
};
