import { connect } from "node:net";
import { ManualClock } from "@atelier/core";
import { Exposition, startTracing } from "@atelier/telemetry";
import { afterEach, describe, expect, it } from "vitest";
import type { Caller } from "./caller.ts";
import { ByteBudget } from "./dispatch/byte-budget.ts";
import type { Fleet } from "./fleet/fleet.ts";
import { Generations } from "./generations/generations.ts";
import type { GenerationContext, MakeLimits } from "./generations/ports.ts";
import { withoutCache, withoutSimilarStarts } from "./generations/without.ts";
import type { Generation, ImageRequestDraft } from "./image-request.ts";
import { InFlight } from "./in-flight.ts";
import { createGatewayMetrics } from "./metrics.ts";
import { FakeWorker } from "./testing/fake-worker.ts";
import { bearer, keysJson, testKey } from "./testing/keys.ts";
import { reflectedClient } from "./testing/reflected-client.ts";
import { allReady, startGateway } from "./testing/start-gateway.ts";
import { workerView } from "./testing/views.ts";

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const SHOP = testKey({ tenant: "shop" });
const NIGHT = testKey({ tenant: "night", priority: "bulk" });
const CACHED = { ATELIER_CACHE_SCOPE: "tenant", ATELIER_CACHE_MIN_ASKS: "1" };

describe("requests", () => {
  it("are counted by route, method, status, the class of their key and where their pictures came from", async () => {
    const { ask, get, seriesWhen } = await world({ ...CACHED, ATELIER_KEYS: keysJson([SHOP, NIGHT]) });
    const same = { prompt: "a mug", seed: 1 };
    for (const key of [SHOP, SHOP, NIGHT]) expect((await ask(same, bearer(key))).status).toBe(200);
    await ask({ prompt: "" }, bearer(SHOP));
    await ask(same, { authorization: "Bearer nonsense" });
    await get("/nothing/here", bearer(SHOP));
    const interactive = 'route="/generate",method="POST",status="200",tenant_class="interactive"';
    const expected = {
      [`${interactive},cache="miss"`]: 1,
      [`${interactive},cache="hit"`]: 1,
      'route="/generate",method="POST",status="200",tenant_class="bulk",cache="miss"': 1,
      'route="/generate",method="POST",status="400",tenant_class="interactive",cache="none"': 1,
      'route="/generate",method="POST",status="401",tenant_class="none",cache="none"': 1,
      'route="unknown",method="GET",status="404",tenant_class="interactive",cache="none"': 1,
    };
    const counted = await seriesWhen("atelier_gateway_requests_total", (each) => Object.keys(each).length >= 6);
    expect(counted).toEqual(expected);
    expect(await seriesWhen("atelier_gateway_request_duration_seconds_count")).toEqual({
      'route="/generate",tenant_class="interactive",cache="miss"': 1,
      'route="/generate",tenant_class="interactive",cache="hit"': 1,
      'route="/generate",tenant_class="bulk",cache="miss"': 1,
      'route="/generate",tenant_class="interactive",cache="none"': 1,
      'route="/generate",tenant_class="none",cache="none"': 1,
      'route="unknown",tenant_class="interactive",cache="none"': 1,
    });
  });

  it("are counted so over gRPC and as a stream of events as well", async () => {
    const { ask, gateway, seriesWhen } = await world({ ...CACHED, ATELIER_GRPC_LISTEN: "127.0.0.1:0" });
    const client = await reflectedClient(gateway.grpcAddress!, "atelier.v1.Generation");
    closing.push(() => client.close());
    await new Promise((resolve) =>
      client["Create"]!({ prompt: "a mug", seed: 1 })
        .on("data", () => {})
        .on("end", resolve),
    );
    await (await ask({ prompt: "a mug", seed: 1 }, { accept: "text/event-stream" }, "/v1/generations")).text();
    const counted = await seriesWhen("atelier_gateway_requests_total", (each) => Object.keys(each).length >= 2);
    expect(counted).toEqual({
      'route="atelier.v1.Generation/Create",method="gRPC",status="200",tenant_class="interactive",cache="miss"': 1,
      'route="/v1/generations",method="POST",status="200",tenant_class="interactive",cache="hit"': 1,
    });
  });
});

describe("pictures", () => {
  it("are told until their first step from the request's arrival, and from the worker's taking of it", async () => {
    const clock = new ManualClock(0);
    const { generate, valueAt } = generationsWith(clock, async ({ onEvent }) => {
      clock.advance(3_000); // until there is a worker for it
      onEvent?.({ type: "accepted", seed: 1, model: "m", stepsTotal: 20 });
      onEvent?.({ type: "progress", stage: "text_encode", stepsDone: 0, stepsTotal: 20, imageIndex: 0 });
      clock.advance(1_500);
      for (let stepsDone = 1; stepsDone <= 20; stepsDone++) {
        onEvent?.({ type: "progress", stage: "denoise", stepsDone, stepsTotal: 20, imageIndex: 0 });
        clock.advance(100);
      }
    });
    await generate({ priority: "standard" });
    expect(await valueAt('time_to_first_step_seconds_sum{class="standard"')).toBe(4.5);
    expect(await valueAt('time_to_first_step_seconds_count{class="standard"')).toBe(1);
    expect(await valueAt('queue_wait_seconds_sum{class="standard"')).toBe(1.5);
    expect(await valueAt('queue_wait_seconds_count{class="standard"')).toBe(1);
  });

  it("tell nothing of a first step where no step was made", async () => {
    const { generate, valueAt } = generationsWith(new ManualClock(0), async () => {});
    await generate({ priority: "standard" });
    expect(await valueAt("time_to_first_step_seconds_count")).toBeUndefined();
    expect(await valueAt("queue_wait_seconds_count")).toBeUndefined();
  });

  it("cost what their device time costs, and nothing from the cache", async () => {
    const price = { ATELIER_PRICE_PER_DEVICE_HOUR: "3600", ATELIER_CURRENCY: "EUR" };
    const { ask, seriesWhen } = await world({ ...CACHED, ...price });
    for (let i = 0; i < 3; i++) await ask({ prompt: "a mug", seed: 1 });
    // The fake worker's stages take 9 ms.
    expect(await seriesWhen("atelier_gateway_device_seconds_total")).toEqual({
      'model="atelier-tiny",cache="miss"': 0.009,
      'model="atelier-tiny",cache="hit"': 0,
    });
    expect(await seriesWhen("atelier_gateway_image_cost_total")).toEqual({
      'model="atelier-tiny",currency="EUR"': 0.009,
    });
  });
});

describe("a request that is traced", () => {
  it("is the exemplar of how long it took, and until its first step", async () => {
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT: "100" };
    const tracing = await startTracing({ service: "gateway", env });
    closing.push(() => tracing.close({ timeoutMs: 0 }));
    const { ask, gateway } = await world({});
    const trace = "0af7651916cd43dd8448eb211c80319c";
    await (await ask({ prompt: "a mug" }, { traceparent: `00-${trace}-b7ad6b7169203331-01` })).text();
    const accept = "application/openmetrics-text; version=1.0.0";
    const open = await (await fetch(`${gateway.url}/metrics`, { headers: { accept } })).text();
    const exemplars = open.split("\n").filter((line) => line.includes(`# {trace_id="${trace}"}`));
    expect(exemplars.map((line) => /^atelier_gateway_(\w+)_seconds_bucket/.exec(line)?.[1]).sort()).toEqual([
      "queue_wait",
      "request_duration",
      "time_to_first_step",
    ]);
  });
});

describe("a caller that makes things up", () => {
  it("adds no series: not by routes, methods, models, tenants, headers or what it asks for", async () => {
    const { ask, get, gateway, labelsOf } = await world({
      ATELIER_KEYS: keysJson([SHOP]),
      ATELIER_GRPC_LISTEN: "127.0.0.1:0",
    });
    const client = await reflectedClient(gateway.grpcAddress!, "atelier.v1.Generation");
    closing.push(() => client.close());
    for (let i = 0; i < 20; i++) {
      const odd = `hostile-${i}`;
      const headers = { ...bearer(SHOP), "x-atelier-tenant": odd, "cache-control": odd, "idempotency-key": odd };
      await get(`/${odd}`, headers);
      await get(`/v1/generations/${odd}`, headers);
      await get(`/v1/jobs/${odd}`, { ...headers, "x-atelier-caller": odd });
      for (const method of ["PROPFIND", "PURGE", "TRACE", "M-SEARCH"])
        await raw(gateway.url, `${method} /${odd} HTTP/1.1`);
      await raw(gateway.url, `HOSTILE${i} / HTTP/1.1`);
      await ask({ prompt: odd, model: odd }, headers);
      await ask({ prompt: odd, format: odd, sampler: odd, tenant: odd, priority: odd }, headers, "/v1/generations");
      await ask({ prompt: odd, adapters: [{ name: odd, weight: 1 }] }, bearer(SHOP), "/v1/generations");
      await ask({ prompt: odd }, { authorization: `Bearer ${odd}` });
      await new Promise((resolve) =>
        client["Create"]!({ prompt: odd, model: odd })
          .on("data", () => {})
          .on("error", resolve)
          .on("end", resolve),
      );
    }
    await ask({ prompt: "a mug" }, bearer(SHOP));
    const labels = await labelsOf();
    for (const [name, value] of labels) expect(`${name}=${value}`).not.toMatch(/hostile/i);
    const values = (name: string) => new Set(labels.filter((label) => label[0] === name).map((label) => label[1]));
    expect([...values("method")].sort()).toEqual(["GET", "POST", "gRPC", "other"]);
    expect([...values("model")]).toEqual(["atelier-tiny"]);
    expect([...values("tenant_class")].sort()).toEqual(["interactive", "none"]);
    expect(
      [...values("route")].every((route) => /^(unknown|\/[\w/:*-]+|atelier\.v1\.Generation\/\w+)$/.test(route)),
    ).toBe(true);
  });
});

async function world(env: Readonly<Record<string, string>>) {
  const worker = await FakeWorker.start();
  const gateway = await startGateway([worker.address], env);
  closing.push(
    () => worker.stop(),
    () => gateway.stop(),
  );
  await gateway.until(allReady);
  const lines = async () => (await (await fetch(`${gateway.url}/metrics`)).text()).split("\n");
  return {
    gateway,
    get: (path: string, headers = {}) => fetch(`${gateway.url}${path}`, { headers }),
    ask: (body: object, headers: Readonly<Record<string, string>> = {}, path = "/generate") =>
      fetch(`${gateway.url}${path}`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: JSON.stringify(body),
      }),
    /** Values by labels once `enough` is there: a request counts when its connection is done with it. Of /metrics itself: none. */
    seriesWhen: async (name: string, enough = (_series: Readonly<Record<string, number>>): boolean => true) => {
      for (;;) {
        const own = (await lines()).filter((line) => line.startsWith(`${name}{`) && !line.includes('"/metrics"'));
        const parts = own.map((line) => /\{(.*),service="gateway"\} (.+)$/.exec(line)!);
        const series = Object.fromEntries(parts.map(([, labels, value]) => [labels, Number(value)]));
        if (enough(series)) return series;
      }
    },
    labelsOf: async () =>
      (await lines()).flatMap((line) =>
        line.startsWith("#")
          ? []
          : [...line.matchAll(/(\w+)="([^"]*)"/g)].map(([, label, value]) => [label!, value!] as const),
      ),
  };
}

function raw(url: string, firstLine: string): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1");
    socket.on("close", () => resolve()).on("error", () => {});
    socket.resume().write(`${firstLine}\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
  });
}

/** The real Generations, whose pictures come about as `make` tells them. */
function generationsWith(clock: ManualClock, make: (limits: MakeLimits) => Promise<void>) {
  const views = [workerView("w:1")];
  const fleet = { views: () => views, observe: () => {} } as unknown as Fleet;
  const inFlight = new InFlight({ max: 10 });
  const metrics = createGatewayMetrics({ fleet, inFlight, checkpoints: new ByteBudget(1) });
  const generations = new Generations({
    fleet,
    inFlight,
    clock,
    metrics: metrics.generations,
    aliases: { resolve: () => "m" },
    tenantLimits: { enter: async () => ({ signal: new AbortController().signal, leave: () => {} }) },
    cache: withoutCache,
    similarStarts: withoutSimilarStarts,
    admission: { adjust: (asked) => asked, enter: () => ({ leave: () => {} }) },
    dispatcher: {
      generate: async (_image, limits) => {
        await make(limits);
        return { pictures: [], receipt: { model: "m", simulated: true } } as unknown as Generation;
      },
    },
  });
  const exposition = new Exposition(metrics.registry);
  return {
    generate: (caller: Pick<Caller, "priority">) => {
      const draft = { id: "1", prompt: "x", negativePrompt: "", numImages: 1, format: "png" } as ImageRequestDraft;
      const context = { caller, cache: {}, signal: new AbortController().signal, deadline: undefined };
      return generations.run(draft, context as unknown as GenerationContext);
    },
    valueAt: async (start: string) => {
      const { body } = await exposition.answer(undefined);
      const line = body.split("\n").find((each) => each.startsWith(`atelier_gateway_${start}`));
      return line === undefined ? undefined : Number(line.split(" ").at(-1));
    },
  };
}
