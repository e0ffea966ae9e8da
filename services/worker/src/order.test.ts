import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Deadline, type ServingError, systemClock } from "@atelier/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerationOutcome } from "./generation.ts";
import { createPipeline, type Pipeline, type PipelineState } from "./pipeline.ts";
import type { GenerationRequest } from "./request.ts";
import { DEFAULT_ORDER, type PriorityClass } from "./stages/order/service-order.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";
import type { RunReport } from "./threads/denoise.thread.ts";

describe("a worker of two threads", () => {
  let stateDir: string;
  let pipeline: Pipeline;
  const ran: RunReport[] = [];
  const problems: ServingError[] = [];

  beforeAll(async () => {
    stateDir = await mkdtemp(join(tmpdir(), "atelier-state-"));
    pipeline = await open();
  });
  afterAll(async () => {
    await pipeline.close();
    await rm(stateDir, { recursive: true });
  });

  it("runs a lone request on the wide lane, many on the narrow ones, and makes the same pictures of them", async () => {
    const requests = Array.from({ length: 6 }, (_, i) => ({
      seed: BigInt(i),
      steps: 4 + i,
      width: i % 2 === 0 ? 128 : 160,
      guidanceScale: i % 3 === 0 ? 1 : 2.5,
      sampler: (["dpmpp_2m", "euler_a", "lcm"] as const)[i % 3]!,
    }));
    const alone: Buffer[] = [];
    for (const request of requests) alone.push((await draw(request)).pixels);
    expect(new Set(ran.map(({ lane }) => lane))).toEqual(new Set(["wide"]));

    ran.length = 0;
    // The narrow lanes open while the first ones run, and are used once the table says that they are worth it.
    const usedNarrow = () => new Set(ran.map(({ lane }) => lane)).size === 3;
    for (let round = 0; round < 10 && !usedNarrow(); round++) {
      const together = await Promise.all(requests.map((request) => draw(request)));
      together.forEach(({ pixels }, i) => {
        expect(Buffer.compare(pixels, alone[i]!), `picture ${i}`).toBe(0);
      });
    }
    expect(usedNarrow()).toBe(true);
    const narrow = ran.filter(({ lane }) => lane !== "wide");
    expect(narrow.every(({ lanes, threads }) => lanes === 2 && threads === 1)).toBe(true);
  });

  it("pauses a bulk request for an interactive one, says so, and makes the same picture of it", async () => {
    const alone = await draw({ steps: 60, sampler: "euler_a" });
    expect(alone.outcome.preemptions).toBe(0);
    let states: PipelineState | undefined;
    const bulk = draw({ steps: 60, sampler: "euler_a" }, "bulk", async (stepsDone) => {
      if (stepsDone !== 5) return;
      // More images than all lanes take at once, of another size than could join the bulk one's.
      await draw({ steps: 5, numImages: 8, width: 160 }, "interactive", async () => {
        states ??= pipeline.state;
      });
      finished.push("interactive");
    });
    const finished: string[] = [];
    const { pixels, outcome } = await bulk;
    finished.push("bulk");

    expect(finished).toEqual(["interactive", "bulk"]);
    expect(outcome.preemptions).toBeGreaterThanOrEqual(1);
    expect(Buffer.compare(pixels, alone.pixels)).toBe(0);
    expect(states!.backlogMs.interactive).toBeGreaterThan(0);
    expect(states!.backlogMs.bulk).toBeGreaterThan(0);
    expect(states!.backlogMs.standard).toBe(0);
  });

  it("says how busy its lanes were, and what it has learned of them", () => {
    const { denoiseBusyRatio, stepTimes } = pipeline.state;
    expect(denoiseBusyRatio).toBeGreaterThan(0);
    expect(denoiseBusyRatio).toBeLessThanOrEqual(1);
    expect(new Set(stepTimes.map(({ threads }) => threads))).toEqual(new Set([1, 2]));
  });

  it("knows after a restart what it had learned, and does without a damaged file", async () => {
    await pipeline.close();
    const learned = pipeline.state.stepTimes;
    pipeline = await open();
    expect(pipeline.state.stepTimes).toEqual(learned);
    expect(pipeline.state.stepMs.get("atelier-tiny")).toBeGreaterThan(0);
    await pipeline.close();

    const path = join(stateDir, "step-times.json");
    await writeFile(path, (await readFile(path, "utf8")).slice(0, 100));
    pipeline = await open();
    expect(pipeline.state.stepTimes).toEqual([]);
    expect(problems.map(({ detail }) => detail)).toEqual([expect.stringMatching(/step-times\.json is not read/)]);
    await draw({});
  });

  it("refuses a tenant of endless name", async () => {
    const order = { ...DEFAULT_ORDER, tenant: "t".repeat(201) };
    await expect(draw({ order })).rejects.toMatchObject({ code: "INVALID_REQUEST", field: "order.tenant" });
  });

  function open(): Promise<Pipeline> {
    return createPipeline({
      bundleDirs: [TEST_BUNDLE],
      device: { kind: "onnx", provider: "cpu", threads: 2 },
      limits: { queueMax: 16, stepBatchMax: 2 },
      observer: { ran: (report) => ran.push(report), stageTook: () => {}, embedded: () => {} },
      stateDir,
      onProblem: (error) => problems.push(error),
      onFatal: (error) => {
        throw error;
      },
    });
  }

  async function draw(
    change: Partial<GenerationRequest>,
    priorityClass: PriorityClass = "standard",
    onStep: (stepsDone: number) => Promise<void> = async () => {},
  ): Promise<{ pixels: Buffer; outcome: GenerationOutcome }> {
    let pixels: Buffer | undefined;
    const steps: Promise<void>[] = [];
    const outcome = await pipeline.generate(
      {
        id: `request-${Math.random()}`,
        model: "atelier-tiny",
        prompt: "a red mug",
        negativePrompt: "",
        width: 128,
        height: 128,
        steps: 4,
        guidanceScale: 2.5,
        sampler: "dpmpp_2m",
        karras: false,
        seed: 11n,
        numImages: 1,
        encoding: { format: "raw", quality: 90 },
        order: { ...DEFAULT_ORDER, priorityClass },
        ...change,
      },
      {
        signal: new AbortController().signal,
        deadline: Deadline.after(systemClock, 60_000),
        onEvent: (event) => {
          if (event.type === "image") pixels = Buffer.from(event.image.data);
          if (event.type === "progress" && event.stage === "denoise") steps.push(onStep(event.stepsDone));
        },
      },
    );
    await Promise.all(steps);
    return { pixels: pixels!, outcome };
  }
});
