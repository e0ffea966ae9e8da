import { Deadline, ServingError, systemClock } from "@atelier/core";
import { createLogger, createRegistry, Exposition, type Span, startSpan, startTracing } from "@atelier/telemetry";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerationEvent } from "./generation.ts";
import { WorkerMetrics } from "./metrics.ts";
import { serveMetrics } from "./metrics-server.ts";
import { createPipeline, type Pipeline } from "./pipeline.ts";
import type { GenerationRequest } from "./request.ts";
import { serveWorker } from "./server/worker-server.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";
import { WorkerClient } from "./testing/worker-client.ts";

describe("a worker's metrics", () => {
  const metrics = new WorkerMetrics(createRegistry("worker"));
  const exposition = new Exposition(metrics.registry);
  let pipeline: Pipeline;

  beforeAll(async () => {
    pipeline = await openPipeline(metrics);
    metrics.state = () => pipeline.state;
    await pipeline.preload();
  });
  afterAll(() => pipeline.close());

  it("tell of a model's load, and nothing of its warm-up's stages", async () => {
    expect(await value('model_loads_total{model="atelier-tiny",outcome="ok"')).toBe(1);
    expect(await value('model_load_seconds_count{model="atelier-tiny"')).toBe(1);
    expect(await value('model_load_seconds_sum{model="atelier-tiny"')).toBeGreaterThan(0);
    expect(await value("stage_seconds_count")).toBeUndefined();
    expect(await value("queue_wait_seconds_count")).toBeUndefined();
  });

  it("count a load that failed by its code, and not as one that took so long", () => {
    const other = new WorkerMetrics(createRegistry("worker"));
    other.loadEnded("m", 5_000, new ServingError("OUT_OF_MEMORY", "no room"));
    const at = (start: string) => valueIn(new Exposition(other.registry), start);
    return expect(Promise.all(["model_loads_total", "model_load_seconds_count"].map(at))).resolves.toEqual([
      1,
      undefined,
    ]);
  });

  it("tell of each request how long it waited, by its class, and of each stage", async () => {
    await generate({ order: { priorityClass: "interactive", tenant: "shop", finishAtMs: undefined } });
    expect(await value('queue_wait_seconds_count{class="interactive"')).toBe(1);
    for (const stage of ["text_encode", "denoise", "image_decode"])
      expect(await value(`stage_seconds_count{stage="${stage}"`)).toBe(1);
  });

  it("tell how full step batches are: of a lone image half, where two may be in one", async () => {
    const [rows, runs, ratio] = await before(
      "rows_total",
      "step_batch_occupancy_ratio_count",
      "step_batch_occupancy_ratio_sum",
    );
    await generate({ guidanceScale: 1, steps: 4 });
    expect(await value("rows_total")).toBe(rows! + 4);
    expect(await value("step_batch_occupancy_ratio_count")).toBe(runs! + 4);
    expect(await value("step_batch_occupancy_ratio_sum")).toBeCloseTo(ratio! + 4 * 0.5);
    // With guidance an image takes two rows, of four that there could be.
    await generate({ guidanceScale: 3, steps: 4 });
    expect(await value("rows_total")).toBe(rows! + 4 + 8);
    expect(await value("step_batch_occupancy_ratio_sum")).toBeCloseTo(ratio! + 8 * 0.5);
  });

  it("count checkpoints and what they weigh", async () => {
    let bytes = 0;
    let count = 0;
    await generate({ steps: 6, checkpointEverySteps: 2 }, (event) => {
      if (event.type !== "checkpoint") return;
      const { latent, history } = event.image.snapshot;
      bytes += latent.byteLength + history.reduce((sum, array) => sum + array.byteLength, 0);
      count += 1;
    });
    expect(count).toBeGreaterThan(0);
    expect(await value("checkpoints_total")).toBe(count);
    expect(await value("checkpoint_bytes_total")).toBe(bytes);
  });

  it("have the trace of a request on what it took, where it is recorded", async () => {
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT: "100" };
    const tracing = await startTracing({ service: "worker", env });
    const span = startSpan("test");
    await generate({}, () => {}, span);
    await tracing.close({ timeoutMs: 0 });
    const { body } = await exposition.answer("application/openmetrics-text");
    const traced = body.split("\n").filter((line) => line.includes(`# {trace_id="${span.traceId}"}`));
    expect(new Set(traced.map((line) => /^atelier_worker_(\w+)_bucket/.exec(line)?.[1]))).toEqual(
      new Set(["queue_wait_seconds", "stage_seconds", "step_seconds"]),
    );
  });

  it("grow no series by what callers make up", async () => {
    const logger = createLogger("worker", "silent");
    const identity = { id: "w1", device: "cpu", simulated: false, pool: "default" };
    const server = await serveWorker({
      listen: { host: "127.0.0.1", port: 0 },
      identity,
      metrics,
      logger,
      tls: undefined,
    });
    server.show(pipeline);
    server.open();
    const http = await serveMetrics({ host: "127.0.0.1", port: 0 }, metrics.registry, () => true);
    const client = new WorkerClient(server.address);
    const ask = (change: object, rest: object = {}) => client.generate(change, rest).ended.catch(() => {});
    await ask({});
    await ask({ model: "nobody" });
    await ask({ steps: 0 });
    const known = await series();
    for (let i = 0; i < 20; i++) {
      const odd = `hostile-${i}`;
      await ask({ model: odd });
      await ask({ steps: 0 }, { order: { tenant: odd, priorityClass: 99, weight: 1 } });
      await ask({ model: odd, steps: 100_000 + i }, { requestId: odd });
      await fetch(`http://${http.address}/${odd}`);
    }
    expect(await series()).toEqual(known);
    client.close();
    await http.close();
    await server.close();
  });

  it("count an image that moves out of one worker, and into another", async () => {
    const first = new WorkerMetrics(createRegistry("worker"));
    const leaving = await openPipeline(first);
    const states = new Map();
    const moved = generateWith(leaving, { steps: 40 }, (event) => {
      if (event.type === "progress" && event.stepsDone === 3) leaving.handBack(new ServingError("DRAINING", "leaving"));
      if (event.type === "checkpoint") states.set(event.imageIndex, event.image);
    });
    await expect(moved).rejects.toMatchObject({ code: "DRAINING" });
    await leaving.close();
    await generate({ steps: 40, resumeFrom: states });
    const out = new Exposition(first.registry);
    expect(await valueIn(out, 'moves_total{direction="out"')).toBe(1);
    expect(await valueIn(out, 'moves_total{direction="in"')).toBe(0);
    expect(await value('moves_total{direction="in"')).toBe(1);
    expect(await value('moves_total{direction="out"')).toBe(0);
  });

  const generate = (change: Partial<GenerationRequest>, onEvent?: (event: GenerationEvent) => void, span?: Span) =>
    generateWith(pipeline, change, onEvent, span);
  const value = (start: string) => valueIn(exposition, start);
  const before = (...starts: string[]) => Promise.all(starts.map(value));
  const series = async () =>
    (await exposition.answer(undefined)).body
      .split("\n")
      .filter((line) => line.startsWith("atelier_"))
      .map((line) => line.replace(/ \S+$/, ""));
});

function openPipeline(observer: WorkerMetrics): Promise<Pipeline> {
  return createPipeline({
    bundleDirs: [TEST_BUNDLE],
    device: { kind: "onnx", provider: "cpu", threads: 1 },
    limits: { queueMax: 8, stepBatchMax: 2 },
    observer,
    onFatal: (error) => {
      throw error;
    },
  });
}

let requests = 0;

function generateWith(
  pipeline: Pipeline,
  change: Partial<GenerationRequest>,
  onEvent: (event: GenerationEvent) => void = () => {},
  span?: Span,
) {
  const call = { signal: new AbortController().signal, deadline: Deadline.after(systemClock, 60_000), onEvent };
  const request = { ...REQUEST, id: `r${requests++}`, ...change };
  return pipeline.generate(request, span === undefined ? call : { ...call, span });
}

/** Of the first series that begins so, after the prefix that all have. */
async function valueIn(exposition: Exposition, start: string): Promise<number | undefined> {
  const { body } = await exposition.answer(undefined);
  const line = body.split("\n").find((each) => each.startsWith(`atelier_worker_${start}`));
  return line === undefined ? undefined : Number(line.split(" ").at(-1));
}

const REQUEST: GenerationRequest = {
  id: "",
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
