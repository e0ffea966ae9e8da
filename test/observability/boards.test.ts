import { globSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readPanels, withVariables } from "../support/boards.ts";
import { type ObservedSystem, startObservedSystem } from "../support/observed-system.ts";
import { type Prometheus, type Rule, startPrometheus } from "../support/prometheus.ts";

const RULES = join(import.meta.dirname, "../../deploy/observability/rules");
const LOAD_S = 20;
const SCRAPE_MS = 500;
const RATE_INTERVAL = "5s";

/** Series that alerts look for and that this load does not bring about, with the reason. Their names are asked for without. */
const NOT_DRIVEN: Readonly<Record<string, string>> = {
  'atelier_worker_model_loads_total{outcome!="ok"}':
    "the embedded model loads; services/worker/src/model-life.test.ts breaks one",
  'atelier_gateway_background_generations_total{status="failed"}': "no generation in the background fails here",
  'atelier_jobs_webhook_calls_total{outcome=~"failed|stopped"}': "a call is given up after a day",
};

/** Panels' series that this load does not bring about, with the reason. That there is such a metric is asked all the same. */
const PANELS_NOT_DRIVEN: Readonly<Record<string, { readonly metric: string; readonly reason: string }>> = {
  "ejected: {{worker}}": {
    metric: "atelier_gateway_worker_ejections",
    reason: "a worker that dies is lost, not ejected; services/gateway/src/fleet/outliers.test.ts ejects some",
  },
};

/**
 * Of the boards and rules that are shipped: what they ask a real Prometheus for is what real services under load tell it. How
 * Grafana draws it is not tried here.
 */
describe("boards and rules on a real Prometheus", () => {
  let system: ObservedSystem;
  let prometheus: Prometheus;
  let rules: readonly Rule[];
  let range: { start: number; end: number; stepS: number };

  beforeAll(async () => {
    system = await startObservedSystem();
    prometheus = await startPrometheus({
      targets: system.targets,
      rules: globSync("*.rules.yaml", { cwd: RULES }).map((file) => join(RULES, file)),
      scrapeIntervalMs: SCRAPE_MS,
    });
    const start = Date.now() / 1_000;
    await system.run(LOAD_S);
    await new Promise((resolve) => setTimeout(resolve, 4 * SCRAPE_MS));
    range = { start, end: Date.now() / 1_000, stepS: 1 };
    rules = await prometheus.rules();
  });

  afterAll(async () => {
    await prometheus?.stop();
    await system?.stop();
  });

  it("reaches every target", async () => {
    const targets = await prometheus.targets();
    expect(targets.length).toBeGreaterThanOrEqual(9);
    for (const { scrapeUrl, health, lastError } of targets)
      expect([scrapeUrl, health, lastError]).toEqual([scrapeUrl, "up", ""]);
  });

  it.each(readPanels().flatMap((panel) => panel.queries.map((query) => ({ ...query, ...panel }))))(
    "$board › $title: $legend has data",
    async ({ expression, legend }) => {
      const notDriven = PANELS_NOT_DRIVEN[legend];
      if (notDriven !== undefined) {
        expect(expression).toContain(notDriven.metric);
        expect(await prometheus.metadata()).toContain(notDriven.metric);
        return;
      }
      const series = await prometheus.queryRange(withVariables(expression, RATE_INTERVAL), range);
      expect(series.filter(({ points }) => points.some(([, value]) => Number.isFinite(value))).length).toBeGreaterThan(
        0,
      );
      // What a legend names is there to be named.
      for (const [, label] of legend.matchAll(/\{\{(\w+)\}\}/g)) {
        for (const { labels } of series) expect(labels).toHaveProperty([label!]);
      }
    },
  );

  it("records what every recording rule is to record", async () => {
    const recording = rules.filter(({ type }) => type === "recording");
    expect(recording.length).toBeGreaterThan(40);
    for (const { name, health, lastError } of recording) {
      expect({ name, health, lastError }).toEqual({ name, health: "ok", lastError: undefined });
      const samples = await prometheus.query(`last_over_time(${name}[2m])`);
      expect([name, samples.length > 0]).toEqual([name, true]);
    }
  });

  it("has every series that an alert looks at, under the labels that it looks at", async () => {
    const alerting = rules.filter(({ type }) => type === "alerting");
    expect(alerting.length).toBeGreaterThanOrEqual(20);
    const missing: string[] = [];
    for (const { name, query, health } of alerting) {
      expect([name, health]).toEqual([name, "ok"]);
      for (const selector of selectorsOf(query)) {
        const series = Object.hasOwn(NOT_DRIVEN, selector)
          ? selector.replaceAll(/[!=]=?~?"[^"]*"/g, '=~".*"')
          : selector;
        if ((await prometheus.query(`last_over_time(${series}[2m])`)).length === 0)
          missing.push(`${name}: ${selector}`);
      }
    }
    expect(missing).toEqual([]);
  });
});

/** `metric` and `metric{label="value"}` of an expression, as Prometheus writes it. */
function selectorsOf(query: string): string[] {
  const plain = query.replaceAll(/\b(by|on|without|ignoring)\s*\([^)]*\)/g, " ").replaceAll(/\[[^\]]*\]/g, " ");
  const withoutTexts = plain.replaceAll(/, "[^"]*"/g, " ");
  return [...withoutTexts.matchAll(/\b[A-Za-z_:][\w:]*(?:\{[^}]*\})?(?!\w*\s*\()/g)]
    .map(([selector]) => selector)
    .filter((selector) => /^(atelier|kube|DCGM|certmanager|process)/.test(selector) && !selector.includes("_label"));
}
