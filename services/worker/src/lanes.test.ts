import { Deadline, systemClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { createPipeline, type Pipeline } from "./pipeline.ts";
import type { GenerationRequest } from "./request.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";

/** Different in all that may differ within a step batch, and one of another size. */
const REQUESTS: readonly Partial<GenerationRequest>[] = [
  { prompt: "a red mug", seed: 1n, steps: 6 },
  { prompt: "a blue sofa, white background", seed: 2n, steps: 9, sampler: "euler_a" },
  { prompt: "国潮风T恤，白色背景", seed: 3n, steps: 7, guidanceScale: 1 },
  { prompt: "a green lamp", negativePrompt: "blurred", seed: 4n, steps: 8, sampler: "dpmpp_2m_sde" },
  { prompt: "a red mug", seed: 5n, steps: 6, width: 160 },
  { prompt: "a yellow chair", seed: 6n, steps: 10, sampler: "unipc" },
];

describe("pictures of one seed", () => {
  it("are the same to the last bit alone, among others, on the wide lane and on narrow ones, for every count of threads", async () => {
    let alone: Uint8Array[] | undefined;
    for (const threads of [1, 3]) {
      const lanes = new Set<string>();
      const rows = new Set<number>();
      const pipeline = await open(threads, (run) => {
        lanes.add(run.lane);
        rows.add(run.rows);
      });
      await pipeline.preload();
      const oneByOne: Uint8Array[] = [];
      for (const request of REQUESTS) oneByOne.push(await picture(pipeline, request));
      expect(lanes).toEqual(new Set(["wide"]));
      alone ??= oneByOne;
      expectSame(oneByOne, alone);

      // Narrow lanes open when there is work for several; a wave may be over before they have.
      for (let wave = 0; wave < 20 && (wave === 0 || lanes.size < threads); wave++) {
        expectSame(await Promise.all(REQUESTS.map((request) => picture(pipeline, request))), alone);
      }
      expect(Math.max(...rows)).toBeGreaterThan(2); // some shared a run
      if (threads > 1) expect(lanes.size).toBeGreaterThan(1);
      await pipeline.close();
    }
  });
});

function open(threads: number, ran: (run: { lane: string; rows: number }) => void): Promise<Pipeline> {
  return createPipeline({
    bundleDirs: [TEST_BUNDLE],
    device: { kind: "onnx", provider: "cpu", threads },
    limits: { queueMax: 16, stepBatchMax: 4 },
    observer: { ran, stageTook: () => {}, embedded: () => {} },
    onFatal: (error) => {
      throw error;
    },
  });
}

async function picture(pipeline: Pipeline, change: Partial<GenerationRequest>): Promise<Uint8Array> {
  const request: GenerationRequest = {
    id: `request-${Math.random()}`,
    model: "atelier-tiny",
    prompt: "",
    negativePrompt: "",
    width: 128,
    height: 128,
    steps: 6,
    guidanceScale: 2.5,
    sampler: "dpmpp_2m",
    karras: false,
    seed: 0n,
    numImages: 1,
    encoding: { format: "raw", quality: 90 },
    ...change,
  };
  let data: Uint8Array | undefined;
  const signal = new AbortController().signal;
  const deadline = Deadline.after(systemClock, 60_000);
  await pipeline.generate(request, {
    signal,
    deadline,
    onEvent: (event) => {
      if (event.type === "image") data = event.image.data;
    },
  });
  return data!;
}

function expectSame(pictures: readonly Uint8Array[], expected: readonly Uint8Array[]): void {
  expect(pictures.map((data, i) => Buffer.compare(data, expected[i]!))).toEqual(expected.map(() => 0));
}
