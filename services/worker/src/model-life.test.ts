import { cp, mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Deadline, ServingError, systemClock } from "@atelier/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerationEvent } from "./generation.ts";
import { MemoryBudget } from "./memory/memory-budget.ts";
import { memoryOf } from "./memory/model-memory.ts";
import { readModels } from "./models.ts";
import { createPipeline, type Pipeline } from "./pipeline.ts";
import type { GenerationRequest } from "./request.ts";
import { copyBundle } from "./testing/copied-bundle.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";

/** The embedded model and a copy of it, on the CPU. */
describe("the models of a worker", () => {
  let folder: string;
  let second: string;
  let pipeline: Pipeline;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-models-"));
    second = await copyBundle(join(folder, "second"), "second");
  });
  afterAll(() => rm(folder, { recursive: true }));

  describe("with room for both", () => {
    beforeAll(async () => {
      pipeline = await createPipeline({ ...OPTIONS, bundleDirs: [TEST_BUNDLE, second] });
      await pipeline.preload(["atelier-tiny"]);
    });
    afterAll(() => pipeline.close());

    it("loads one while another denoises, whose steps go on meanwhile", async () => {
      const long = longRequest();
      await until(() => long.stepsDone() > 0);
      const before = long.stepsDone();
      await pipeline.loadModel("second", forever());
      const after = long.stepsDone();
      await long.takeBack();
      expect(statuses()).toEqual({ "atelier-tiny": "resident", second: "resident" });
      expect(after).toBeGreaterThan(before + 8); // more than one step of its eight images
    });

    it("serves from both side by side, warm", async () => {
      expect(pipeline.state.stepMs.get("second")).toBeGreaterThan(0); // learned at the warm-up
      const [first, other] = await Promise.all([picture("atelier-tiny"), picture("second")]);
      expect(Buffer.compare(first, other)).toBe(0); // one and the same weights
    });

    it("loads what a request asks for, which waits and is told that it was accepted", async () => {
      expect(await pipeline.unloadModel("second")).toBeGreaterThan(0);
      const seen = new Set<string>();
      const off = pipeline.onChange(() => seen.add(statuses()["second"]!));
      const events: string[] = [];
      await picture("second", (event) => events.push(event.type));
      off();
      expect(events[0]).toBe("accepted");
      expect(events.at(-1)).toBe("image");
      expect([...seen]).toEqual(["loading", "resident"]);
    });
  });

  describe("with room for one", () => {
    beforeAll(async () => {
      const models = [...(await readModels([TEST_BUNDLE])).values()].map(memoryOf);
      const one = new MemoryBudget({ budgetBytes: Infinity, models, narrowLanesMax: 0, decoderSessions: 1 });
      one.hold("atelier-tiny", one.warmUpDemand("atelier-tiny"));
      const memoryBudgetBytes = 1.5 * one.usedBytes;
      pipeline = await createPipeline({ ...OPTIONS, bundleDirs: [TEST_BUNDLE, second], memoryBudgetBytes });
    });
    afterAll(() => pipeline.close());

    it("loads no more at the start than fit, in order", async () => {
      await pipeline.preload();
      expect(statuses()).toEqual({ "atelier-tiny": "resident", second: "on-disk" });
      const { memoryUsedBytes, memoryBudgetBytes } = pipeline.state;
      expect(memoryUsedBytes).toBeGreaterThan(memoryBudgetBytes / 2);
      expect(memoryUsedBytes).toBeLessThanOrEqual(memoryBudgetBytes);
    });

    it("makes room for the one that is asked for by the idle one, which comes back the same", async () => {
      const before = await picture("atelier-tiny");
      await picture("second");
      expect(statuses()).toEqual({ "atelier-tiny": "on-disk", second: "resident" });
      expect(Buffer.compare(await picture("atelier-tiny"), before)).toBe(0);
    });

    it("keeps the one in use, and refuses the other", async () => {
      const long = longRequest();
      await until(() => long.stepsDone() > 0);
      await expect(picture("second")).rejects.toMatchObject({ code: "OVERLOADED" });
      await expect(pipeline.unloadModel("atelier-tiny")).rejects.toThrow("1 request is in flight");
      await long.takeBack();
      expect(await pipeline.unloadModel("atelier-tiny")).toBeGreaterThan(0);
      expect(pipeline.state.memoryUsedBytes).toBe(0);
    });

    it("refuses at once a size that could never be made, names the largest that could, and loads nothing", async () => {
      await expect(generate({ width: 1024, height: 1024, model: "second" })).rejects.toMatchObject({
        code: "INVALID_REQUEST",
        field: "width",
        detail: expect.stringMatching(/the largest size of this aspect that fits is \d+x\d+$/),
      });
      expect(statuses()).toEqual({ "atelier-tiny": "on-disk", second: "on-disk" });
    });
  });

  it("says why one could not be loaded, waits a little, and loads it once it is mended", async () => {
    const broken = await copyBundle(join(folder, "broken"), "broken");
    pipeline = await createPipeline({ ...OPTIONS, bundleDirs: [broken] });
    await truncate(join(broken, "unet/model.onnx"), 1000); // after it was read and found whole
    await expect(generate({ model: "broken" })).rejects.toMatchObject({ code: "INVALID_BUNDLE" });
    const [place] = pipeline.state.places;
    expect(place).toMatchObject({
      status: "on-disk",
      error: { detail: expect.stringMatching(/^unet\/model\.onnx: /) },
    });

    await cp(join(TEST_BUNDLE, "unet/model.onnx"), join(broken, "unet/model.onnx"));
    await pipeline.loadModel("broken", forever());
    await generate({ model: "broken" });
    expect(pipeline.state.places[0]).toMatchObject({ status: "resident", error: undefined });
    await pipeline.close();
  });

  /** Eight images of so many steps that they only end when they are taken back. */
  function longRequest() {
    const abort = new AbortController();
    let stepsDone = 0;
    const ended = generate(
      { steps: 150, width: 256, height: 256, numImages: 8 },
      {
        signal: abort.signal,
        onEvent: (event) => {
          if (event.type === "progress") stepsDone = event.stepsDone;
        },
      },
    );
    return {
      stepsDone: () => stepsDone,
      async takeBack(): Promise<void> {
        abort.abort(new ServingError("CANCELLED", "seen enough"));
        await expect(ended).rejects.toThrow("seen enough");
      },
    };
  }

  function statuses(): Record<string, string> {
    return Object.fromEntries(pipeline.state.places.map(({ id, status }) => [id, status]));
  }

  async function picture(model: string, onEvent: (event: GenerationEvent) => void = () => {}): Promise<Buffer> {
    let made: Buffer | undefined;
    await generate(
      { model },
      {
        onEvent: (event) => {
          onEvent(event);
          if (event.type === "image") made = Buffer.from(event.image.data);
        },
      },
    );
    return made!;
  }

  function generate(
    change: Partial<GenerationRequest>,
    call: { signal?: AbortSignal; onEvent?: (event: GenerationEvent) => void } = {},
  ) {
    const request: GenerationRequest = { ...REQUEST, id: `request-${Math.random()}`, ...change };
    return pipeline.generate(request, { ...forever(), onEvent: () => {}, ...call });
  }
});

const OPTIONS = {
  device: { kind: "onnx", provider: "cpu", threads: 1 },
  limits: { queueMax: 8, stepBatchMax: 8 },
  residentBytes: () => undefined, // what a process grows by is not the same twice
  onFatal: (error: Error) => {
    throw error;
  },
} as const;

const REQUEST: Omit<GenerationRequest, "id"> = {
  model: "atelier-tiny",
  prompt: "a red mug",
  negativePrompt: "",
  width: 128,
  height: 128,
  steps: 2,
  guidanceScale: 2.5,
  sampler: "dpmpp_2m",
  karras: false,
  seed: 11n,
  numImages: 1,
  encoding: { format: "raw", quality: 90 },
};

const forever = () => ({ signal: new AbortController().signal, deadline: Deadline.after(systemClock, 120_000) });

async function until(fact: () => boolean): Promise<void> {
  while (!fact()) await new Promise((resolve) => setTimeout(resolve, 10));
}
