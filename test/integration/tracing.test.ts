import { describe, expect, it } from "vitest";
import { atEnd, until } from "../support/ends.ts";
import { spawnGateway } from "../support/gateway-process.ts";
import { ask, follow } from "../support/generate-client.ts";
import { OtlpReceiver, type ReceivedSpan, treeOf } from "../support/otlp-receiver.ts";
import { startWorker, type TestWorker } from "../support/workers.ts";

const SMALL = { prompt: "a red mug", width: 128, height: 128, steps: 3, seed: 7 };
const LONG = { ...SMALL, steps: 60, width: 256, height: 256 };
const TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";

/** Gateways and workers as processes, with the embedded model; a receiver in the test is their collector. */
describe("a request's trace", () => {
  it("goes from HTTP through the worker's stages to the picture, in one tree", async () => {
    const { receiver, gateway } = await system(1);
    const response = await fetch(`${gateway.url}/generate`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "x-request-id": "order-17",
        traceparent: `00-${TRACE}-00f067aa0ba902b7-01`,
      },
      body: JSON.stringify(SMALL),
    });
    expect(response.headers.get("x-request-id")).toBe("order-17");
    await response.arrayBuffer();

    const spans = await whole(receiver, TRACE, "POST /generate");
    expect(treeOf(spans)).toBe(
      [
        "atelier-gateway POST /generate",
        "  atelier-gateway cache.lookup",
        "  atelier-gateway admission",
        "  atelier-gateway dispatch",
        "    atelier-gateway place",
        "    atelier-gateway atelier.v1.WorkerService/Generate",
        "      atelier-worker atelier.v1.WorkerService/Generate",
        "        atelier-worker text_encode",
        "        atelier-worker denoise",
        "        atelier-worker image_decode",
      ].join("\n"),
    );
    const named = (name: string) => spans.find((span) => span.name === name)!;
    expect(named("POST /generate")).toMatchObject({
      kind: 2,
      parentSpanId: "00f067aa0ba902b7",
      attributes: {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "atelier.request_id": "order-17",
        "atelier.tenant": "local",
        "atelier.cache": "miss",
      },
    });
    const denoise = named("denoise");
    expect(denoise.events.map(({ attributes }) => attributes["atelier.step.index"])).toEqual([1, 2, 3]);
    expect(denoise.events[0]).toMatchObject({
      name: "step_batch",
      attributes: { "atelier.step.rows": 2, "atelier.step.batch_mates": 0 },
    });
    expect(denoise.attributes).toMatchObject({ "atelier.steps": 3, "atelier.queue_wait_ms": expect.any(Number) });
    const server = spans.find(({ service, name }) => service === "atelier-worker" && name.endsWith("/Generate"))!;
    expect(server.attributes["atelier.request_id"]).toBe("order-17");
    expect(JSON.stringify(spans)).not.toContain(SMALL.prompt);
  });

  it("shows both attempts where a worker is killed in the middle of denoising", async () => {
    const { receiver, gateway, workers } = await system(2);
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(10);
    const chosen = await busy(workers);
    await chosen.kill();
    await followed.completed;

    const root = await ended(receiver, "POST /generate");
    const calls = () => receiver.spans(root.traceId).filter(({ name }) => name.endsWith("/Generate"));
    await until(() => calls().length === 3); // the dead worker's own never came
    const spans = receiver.spans(root.traceId);
    const [first, second] = spans.filter(({ name, kind }) => name.endsWith("/Generate") && kind === 3);
    expect(first).toMatchObject({
      status: 2,
      attributes: { "atelier.worker.id": chosen.id, "error.type": "WORKER_LOST", "atelier.attempt.kind": "first" },
    });
    expect(second).toMatchObject({ status: 0, attributes: { "atelier.attempt.kind": "retry" } });
    expect(second!.attributes["atelier.worker.id"]).not.toBe(chosen.id);
    expect(second!.attributes["atelier.resumed_states"]).toBe(1);
    expect(second!.links).toMatchObject([{ traceId: root.traceId, spanId: first!.spanId }]);
    // What the dead worker did is lost with it; what its successor did is there, from the checkpoint on.
    const denoise = spans.find(({ name }) => name === "denoise")!;
    expect(denoise.attributes["atelier.steps.resumed_at"]).toBeGreaterThanOrEqual(9);
    const dispatch = spans.find(({ name }) => name === "dispatch")!;
    expect(dispatch.events).toMatchObject([{ name: "attempt failed", attributes: { "error.type": "WORKER_LOST" } }]);
  });

  it("is linked to from those who share what it makes, and from those who read it later", async () => {
    const { receiver, gateway } = await system(1);
    const same = { ...LONG, seed: 99 };
    const post = () =>
      fetch(`${gateway.url}/generate`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(same),
      });
    const answers = await Promise.all([post(), post()]);
    const outcomes = answers.map(({ headers }) => headers.get("x-atelier-cache"));
    expect(outcomes.toSorted()).toEqual(["miss", "shared"]);
    await until(() => receiver.spans().filter(({ name }) => name === "POST /generate").length === 2);
    const requests = receiver.spans().filter(({ name }) => name === "POST /generate");
    const maker = requests.find(({ attributes }) => attributes["atelier.cache"] === "miss")!;
    const follower = requests.find(({ attributes }) => attributes["atelier.cache"] === "shared")!;
    expect(follower.links).toMatchObject([{ traceId: maker.traceId, spanId: maker.spanId }]);

    const started = await fetch(`${gateway.url}/v1/generations`, {
      method: "POST",
      headers: { "content-type": "application/json", prefer: "respond-async" },
      body: JSON.stringify(SMALL),
    });
    const { id } = (await started.json()) as { id: string };
    await (await fetch(`${gateway.url}/v1/generations/${id}?wait=10000`)).json();
    const making = await ended(receiver, "generation.background");
    const reading = await ended(receiver, "GET /v1/generations/:id");
    expect(reading.traceId).not.toBe(making.traceId);
    expect(reading.links[0]).toMatchObject({ traceId: making.traceId, spanId: making.spanId });
  });

  it("begins anew where a caller's traceparent is malformed, and is not recorded where the caller's is not", async () => {
    const { receiver, gateway } = await system(1);
    const ofTrace = (traceparent: string) =>
      fetch(`${gateway.url}/v1/models`, { headers: { traceparent } }).then((response) => response.text());
    await ofTrace(`00-${TRACE}-00f067aa0ba902b7-00`);
    await ofTrace(`00-${"0".repeat(32)}-00f067aa0ba902b7-01`);
    await ofTrace("nonsense");
    await until(() => receiver.spans().length === 2);
    expect(receiver.spans().every(({ traceId, parentSpanId }) => traceId !== TRACE && parentSpanId === "")).toBe(true);
  });

  it.each(["hangs", "refuses"] as const)("harms no request where its receiver %s", async (manner) => {
    const { receiver, gateway, workers } = await system(1);
    receiver.manner = manner;
    for (let seed = 0; seed < 5; seed++) await ask(gateway.url, { ...SMALL, seed });
    await until(() => receiver.deliveries > 0);
    await ask(gateway.url, SMALL);
    gateway.child.kill("SIGTERM");
    const [code] = await new Promise<[number | null]>((resolve) =>
      gateway.child.once("exit", (...end) => resolve([end[0]])),
    );
    expect(code).toBe(0);
    expect(workers[0]!.alive).toBe(true);
  });

  it("harms no request where there is no receiver at all", async () => {
    const nobody = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:9" };
    const worker = await workerWith(nobody);
    const gateway = await spawnGateway({ ATELIER_WORKERS: worker.address, ...nobody });
    expect((await ask(gateway.url, SMALL)).receipt.seed).toBe(7);
  });
});

async function system(count: number) {
  const receiver = await OtlpReceiver.start();
  const workers = await Promise.all(
    Array.from({ length: count }, (_, i) => workerWith({ ATELIER_WORKER_ID: `worker-${i + 1}`, ...receiver.env })),
  );
  const gateway = await spawnGateway({
    ATELIER_WORKERS: workers.map(({ address }) => address).join(","),
    ATELIER_CACHE_MIN_ASKS: "1",
    ATELIER_CHECKPOINT_EVERY_STEPS: "1",
    ...receiver.env,
  });
  return { receiver, gateway, workers };
}

async function workerWith(env: Readonly<Record<string, string>>): Promise<TestWorker> {
  const worker = await startWorker({ ATELIER_THREADS: "1", ...env });
  atEnd(() => worker.kill());
  return worker;
}

/** The first span of this name that has ended. */
async function ended(receiver: OtlpReceiver, name: string): Promise<ReceivedSpan> {
  const find = () => receiver.spans().find((span) => span.name === name);
  await until(() => find() !== undefined);
  return find()!;
}

/** All of a trace: its first span ends last, and the worker's are delivered beside it. */
async function whole(receiver: OtlpReceiver, traceId: string, root: string): Promise<readonly ReceivedSpan[]> {
  const names = () => receiver.spans(traceId).map(({ name }) => name);
  await until(() => names().includes(root) && names().includes("image_decode") && complete(receiver.spans(traceId)));
  return receiver.spans(traceId);
}

/** Every span's parent is there, but for the caller's own. */
function complete(spans: readonly ReceivedSpan[]): boolean {
  const ids = new Set(spans.map(({ spanId }) => spanId));
  return spans.filter(({ parentSpanId }) => !ids.has(parentSpanId)).length === 1;
}

async function busy(workers: readonly TestWorker[]): Promise<TestWorker> {
  for (;;) {
    for (const worker of workers) if ((await worker.counted("atelier_worker_requests_in_flight")) > 0) return worker;
  }
}
