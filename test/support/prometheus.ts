import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runDaemon } from "../../scripts/services/daemons.ts";
import { prometheusServer } from "../../scripts/services/programs.ts";
import { freePorts } from "./free-ports.ts";

export interface PrometheusOptions {
  readonly targets?: readonly PrometheusTarget[];
  /** Further entries of scrape_configs, as its own documentation has them. */
  readonly scrapeConfigs?: readonly object[];
  /** Files of rules. */
  readonly rules?: readonly string[];
  readonly scrapeIntervalMs?: number;
  readonly evaluationIntervalMs?: number;
}

export interface PrometheusTarget {
  /** Becomes the label `job`. */
  readonly job: string;
  /** host:port of each. */
  readonly addresses: readonly string[];
  readonly labels?: Readonly<Record<string, string>>;
  readonly path?: string;
}

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Series {
  readonly labels: Readonly<Record<string, string>>;
  /** Unix seconds and value, oldest first. */
  readonly points: readonly (readonly [number, number])[];
}

/** A real Prometheus on a free port of loopback, which ends with this process at the latest. It keeps nothing. */
export async function startPrometheus(options: PrometheusOptions = {}): Promise<Prometheus> {
  const {
    targets = [],
    scrapeConfigs = [],
    rules = [],
    scrapeIntervalMs = 1_000,
    evaluationIntervalMs = 1_000,
  } = options;
  const program = await prometheusServer();
  const [port] = await freePorts(1);
  const folder = await mkdtemp(join(tmpdir(), "atelier-prometheus-"));
  const file = join(folder, "prometheus.json");
  // YAML is a superset of JSON.
  const config = {
    global: { scrape_interval: `${scrapeIntervalMs}ms`, evaluation_interval: `${evaluationIntervalMs}ms` },
    rule_files: rules,
    scrape_configs: [
      ...targets.map(({ job, addresses, labels = {}, path = "/metrics" }) => ({
        job_name: job,
        scrape_timeout: `${scrapeIntervalMs}ms`,
        metrics_path: path,
        static_configs: [{ targets: addresses, labels }],
      })),
      ...scrapeConfigs,
    ],
  };
  await writeFile(file, JSON.stringify(config));
  const address = `127.0.0.1:${port}`;
  const daemon = await runDaemon({
    command: [
      program.path,
      `--config.file=${file}`,
      `--storage.tsdb.path=${join(folder, "data")}`,
      `--web.listen-address=${address}`,
      "--log.level=warn",
    ],
    env: program.env,
    address,
    folder,
    answers: () =>
      fetch(`http://${address}/-/ready`).then(
        ({ ok }) => ok,
        () => false,
      ),
  });
  return new Prometheus(`http://${address}`, daemon.stop);
}

export class Prometheus {
  readonly url: string;
  readonly stop: () => Promise<void>;

  constructor(url: string, stop: () => Promise<void>) {
    this.url = url;
    this.stop = stop;
  }

  /** Of now, or of `at` in unix seconds. @throws with what Prometheus says of the expression. */
  async query(expression: string, at?: number): Promise<readonly Sample[]> {
    const { resultType, result } = (await this.#get("query", {
      query: expression,
      ...(at !== undefined && { time: String(at) }),
    })) as QueryResult;
    if (resultType === "scalar") return [{ labels: {}, value: Number(result[1]) }];
    return result.map(({ metric, value }) => ({ labels: metric, value: Number(value[1]) }));
  }

  /** Times in unix seconds. @throws with what Prometheus says of the expression. */
  async queryRange(
    expression: string,
    { start, end, stepS }: { start: number; end: number; stepS: number },
  ): Promise<readonly Series[]> {
    const range = { query: expression, start: String(start), end: String(end), step: String(stepS) };
    const { result } = (await this.#get("query_range", range)) as RangeResult;
    return result.map(({ metric, values }) => ({
      labels: metric,
      points: values.map(([at, value]) => [at, Number(value)] as const),
    }));
  }

  /** Every rule that it evaluates, with what went wrong with the last evaluation. */
  async rules(): Promise<readonly Rule[]> {
    const { groups } = (await this.#get("rules")) as { groups: { rules: Rule[] }[] };
    return groups.flatMap(({ rules }) => rules);
  }

  /** What it scrapes, by whether the last time worked. */
  async targets(): Promise<readonly { readonly scrapeUrl: string; readonly health: string; lastError: string }[]> {
    const { activeTargets } = (await this.#get("targets")) as {
      activeTargets: { scrapeUrl: string; health: string; lastError: string }[];
    };
    return activeTargets;
  }

  /** Names of all metrics that its targets declare, with values or without; of counters, as OpenMetrics has it, without `_total`. */
  async metadata(): Promise<readonly string[]> {
    return Object.keys((await this.#get("metadata")) as object);
  }

  async #get(path: string, query: Readonly<Record<string, string>> = {}): Promise<unknown> {
    const response = await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(query)}`);
    const answer = (await response.json()) as { status: string; data: unknown; error?: string };
    if (answer.status !== "success") throw new Error(`Prometheus: ${answer.error}: ${query["query"] ?? path}`);
    return answer.data;
  }
}

export interface Rule {
  readonly type: "alerting" | "recording";
  readonly name: string;
  readonly query: string;
  /** ok, err or unknown, which is before the first evaluation. */
  readonly health: string;
  readonly lastError?: string;
  /** Of an alert. */
  readonly state?: string;
}

type QueryResult =
  | { readonly resultType: "scalar"; readonly result: readonly [number, string] }
  | {
      readonly resultType: "vector";
      readonly result: readonly { metric: Record<string, string>; value: [number, string] }[];
    };

interface RangeResult {
  readonly result: readonly { metric: Record<string, string>; values: [number, string][] }[];
}
