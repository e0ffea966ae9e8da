import type { MetricObjectWithValues, MetricValueWithName, Registry } from "prom-client";

export interface Exposed {
  readonly contentType: string;
  readonly body: string;
}

const TEXT = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/** Base units that a name may end with, and that OpenMetrics states. */
const UNITS = ["seconds", "bytes", "ratio"];

interface Exemplar {
  readonly labelSet: Readonly<Record<string, string>>;
  readonly value: number;
  /** Seconds since the epoch. */
  readonly timestamp: number;
}

type Value = MetricValueWithName<string> & { readonly exemplar?: Exemplar | null };

/**
 * A registry as it is scraped: OpenMetrics, which has exemplars, for whoever accepts that, and Prometheus' text format
 * for all others. Series are the same in both. prom-client's own OpenMetrics renames the metrics as it writes, so that
 * one registry cannot be shown in both forms.
 *
 * Sources: OpenMetrics 1.0.0; Prometheus, "Exposition formats", text-based format 0.0.4.
 */
export class Exposition {
  readonly #registry: Registry;
  /** By form; many who ask at once get one answer. */
  readonly #underWay = new Map<string, Promise<Exposed>>();
  #defaults: string | undefined;

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  /** `accept`: the header, where there is one. */
  answer(accept: string | undefined): Promise<Exposed> {
    const contentType = wantsOpenMetrics(accept) ? OPEN_METRICS : TEXT;
    const before = this.#underWay.get(contentType);
    if (before !== undefined) return before;
    const answer = this.#write(contentType).finally(() => this.#underWay.delete(contentType));
    this.#underWay.set(contentType, answer);
    return answer;
  }

  async #write(contentType: string): Promise<Exposed> {
    const open = contentType === OPEN_METRICS;
    const metrics = (await Promise.all(
      this.#registry.getMetricsAsArray().map((metric) => (metric as unknown as Collected).get()),
    )) as readonly MetricObjectWithValues<Value>[];
    this.#defaults ??= labelsText(defaultLabelsOf(this.#registry));
    const lines: string[] = [];
    for (const metric of metrics) write(lines, metric, this.#defaults, open);
    if (open) lines.push("# EOF");
    return { contentType, body: `${lines.join("\n")}\n` };
  }
}

interface Collected {
  get(): Promise<unknown>;
}

function defaultLabelsOf(registry: Registry): Readonly<Record<string, string>> {
  return (registry as unknown as { _defaultLabels: Readonly<Record<string, string>> })._defaultLabels;
}

function write(lines: string[], metric: MetricObjectWithValues<Value>, defaults: string, open: boolean): void {
  const { name, help, values } = metric;
  const type = String(metric.type);
  const family = open && type === "counter" ? name.replace(/_total$/, "") : name;
  lines.push(`# HELP ${family} ${escapeHelp(help, open)}`, `# TYPE ${family} ${type}`);
  if (open) {
    const unit = UNITS.find((each) => family.endsWith(`_${each}`));
    if (unit !== undefined) lines.push(`# UNIT ${family} ${unit}`);
  }
  for (const { metricName = name, labels, value, exemplar } of values) {
    const own = labelsText(labels);
    const all = own === "" ? defaults : defaults === "" ? own : `${own},${defaults}`;
    const tail = open && exemplar ? exemplarText(exemplar) : "";
    lines.push(`${metricName}${all === "" ? "" : `{${all}}`} ${numberText(value)}${tail}`);
  }
}

function exemplarText({ labelSet, value, timestamp }: Exemplar): string {
  return ` # {${labelsText(labelSet)}} ${numberText(value)} ${timestamp}`;
}

function labelsText(labels: Partial<Record<string, string | number>>): string {
  let text = "";
  for (const name in labels) {
    const value = labels[name];
    text += `${text === "" ? "" : ","}${name}="${typeof value === "string" ? escapeValue(value) : numberText(value ?? 0)}"`;
  }
  return text;
}

const TO_ESCAPE = /[\\"\n]/;

function escapeValue(text: string): string {
  if (!TO_ESCAPE.test(text)) return text;
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"');
}

function escapeHelp(text: string, open: boolean): string {
  return open ? escapeValue(text) : text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function numberText(value: number): string {
  if (Number.isFinite(value)) return String(value);
  return Number.isNaN(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf";
}

/** Source: RFC 9110, section 12.5.1; a scraper names what it wants, so that wildcards get text. */
function wantsOpenMetrics(accept = ""): boolean {
  let open = 0;
  let text = 0;
  for (const range of accept.split(",")) {
    const [type = "", ...parameters] = range.split(";").map((part) => part.trim().toLowerCase());
    const stated = parameters.find((part) => part.startsWith("q="));
    const quality = stated === undefined ? 1 : Number(stated.slice(2)) || 0;
    if (type === "application/openmetrics-text") open = Math.max(open, quality);
    else if (type === "text/plain") text = Math.max(text, quality);
  }
  return open > 0 && open >= text;
}
