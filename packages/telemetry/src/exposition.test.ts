import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Counter, createRegistry, Exposition, Gauge, TracedHistogram, VERSION } from "./index.ts";

/** What Prometheus sends, from 2.5 on. */
const PROMETHEUS =
  "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const TRACE = "0af7651916cd43dd8448eb211c80319c";

describe("an exposition", () => {
  it.each([
    ["no Accept header", undefined, "text/plain; version=0.0.4; charset=utf-8"],
    ["a browser", "text/html,*/*;q=0.8", "text/plain; version=0.0.4; charset=utf-8"],
    ["one that wants text more", "application/openmetrics-text;q=0.2, text/plain", "text/plain; version=0.0.4"],
    ["one that refuses OpenMetrics", "application/openmetrics-text;q=0", "text/plain; version=0.0.4"],
    ["Prometheus", PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8"],
    ["an Accept header that is none", ";;q=x,,", "text/plain; version=0.0.4"],
  ])("is for %s what it accepts", async (_who, accept, contentType) => {
    const answer = await new Exposition(createRegistry("gateway")).answer(accept);
    expect(answer.contentType).toContain(contentType);
  });

  it("shows the same series in both forms, the one after the other", async () => {
    const { exposition } = measured();
    const text = (await exposition.answer(undefined)).body;
    const open = (await exposition.answer(PROMETHEUS)).body;
    const again = (await exposition.answer(undefined)).body;
    expect(seriesOf(open)).toEqual(seriesOf(text));
    expect(seriesOf(again)).toEqual(seriesOf(text));
    expect(seriesOf(text)).toContain('cats_total{kind="a \\"b\\"\\\\\\n",service="test"}');
  });

  it("names counters' families without their suffix, states units and ends as OpenMetrics does", async () => {
    const { body } = await measured().exposition.answer(PROMETHEUS);
    expect(body).toContain("# TYPE cats counter\n");
    expect(body).toContain("# UNIT waited_seconds seconds\n");
    expect(body).toMatch(/\n# EOF\n$/);
    expect((await measured().exposition.answer(undefined)).body).toContain("# TYPE cats_total counter\n");
  });

  it("has an exemplar on the bucket of each trace, in OpenMetrics only", async () => {
    const { exposition, waited } = measured();
    waited.observe({ class: "bulk" }, 0.5, TRACE);
    waited.observe({ class: "bulk" }, 70, undefined);
    const open = (await exposition.answer(PROMETHEUS)).body.split("\n").filter((line) => line.includes("bulk"));
    const number = String.raw`\d+(\.\d+)?`;
    expect(open.filter((line) => line.includes(" # "))).toEqual([
      expect.stringMatching(
        new RegExp(
          `^waited_seconds_bucket\\{le="1",class="bulk",service="test"\\} 1 # \\{trace_id="${TRACE}"\\} 0.5 ${number}$`,
        ),
      ),
    ]);
    expect(open.at(-1)).toBe('waited_seconds_count{class="bulk",service="test"} 2');
    expect((await exposition.answer(undefined)).body).not.toContain(TRACE);
  });

  it("asks what it measures once for all who ask at the same time", async () => {
    let asked = 0;
    const registry = createRegistry("test");
    new Gauge({
      name: "asked",
      help: "How often.",
      registers: [registry],
      collect() {
        this.set(++asked);
      },
    });
    const exposition = new Exposition(registry);
    const answers = await Promise.all([1, 2, 3].map(() => exposition.answer(undefined)));
    expect(new Set(answers.map(({ body }) => body)).size).toBe(1);
    await exposition.answer(undefined);
    expect(asked).toBe(2);
  });

  it("writes what is no finite number as Prometheus reads it", async () => {
    const registry = createRegistry("test");
    const gauge = new Gauge({ name: "odd", help: "Odd.", labelNames: ["of"], registers: [registry] });
    for (const value of [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN])
      gauge.set({ of: `${value}` }, value);
    const { body } = await new Exposition(registry).answer(undefined);
    expect(
      body
        .split("\n")
        .filter((line) => line.startsWith("odd"))
        .map((line) => line.split(" ")[1]),
    ).toEqual(["+Inf", "-Inf", "NaN"]);
  });
});

describe("what every process tells of itself", () => {
  it("is the release, the revision and Node's version", async () => {
    const root = readFileSync(join(import.meta.dirname, "../../../package.json"), "utf8");
    expect(VERSION).toBe(JSON.parse(root).version); // one for all
    const { body } = await new Exposition(createRegistry("jobs", { revision: "abc123" })).answer(undefined);
    expect(body).toContain(
      `atelier_build_info{version="${VERSION}",revision="abc123",node="${process.version}",service="jobs"} 1\n`,
    );
    const unknown = await new Exposition(createRegistry("jobs")).answer(undefined);
    expect(unknown.body).toContain('revision="unknown"');
  });

  it("is its CPU, memory and event loop, and no gauge that is named like a counter", async () => {
    const { body } = await new Exposition(createRegistry("jobs")).answer(undefined);
    for (const name of [
      "process_cpu_seconds_total",
      "process_resident_memory_bytes",
      "nodejs_eventloop_lag_p99_seconds",
    ]) {
      expect(body).toMatch(new RegExp(`^${name}\\{`, "m"));
    }
    expect(body).not.toMatch(/^# TYPE \S+_total gauge$/m);
  });
});

function measured() {
  const registry = createRegistry("test");
  const cats = new Counter({
    name: "cats_total",
    help: 'A "cat".\nOr \\ two.',
    labelNames: ["kind"],
    registers: [registry],
  });
  cats.inc({ kind: 'a "b"\\\n' }, 2);
  const waited = new TracedHistogram({
    name: "waited_seconds",
    help: "Waited.",
    labelNames: ["class"],
    buckets: [0.1, 1, 10],
    registers: [registry],
  });
  waited.observe({ class: "standard" }, 0.05);
  return { exposition: new Exposition(registry), waited };
}

function seriesOf(body: string): readonly string[] {
  return body
    .split("\n")
    .flatMap((line) => (line === "" || line.startsWith("#") ? [] : [line.replace(/ [^ ]+( # .*)?$/, "")]));
}
