import type { ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { parse } from "yaml";
import { TestAuthority } from "../../support/certificates.ts";
import type { Prometheus } from "../../support/prometheus.ts";
import type { Plane } from "./plane.ts";

const GROUP = "external.metrics.k8s.io";
const VERSION = "v1beta1";
const GROUP_VERSION = `${GROUP}/${VERSION}`;

/** As prometheus-adapter's configuration has it. */
interface ExternalRule {
  readonly name: { readonly as: string };
  readonly metricsQuery: string;
}

/**
 * The external metrics API over a real Prometheus, by the rules that the chart ships for prometheus-adapter, behind the API
 * server's aggregation layer: what an HPA asks. Stands where prometheus-adapter stands in a cluster.
 */
export class ExternalMetrics {
  readonly #rules: readonly ExternalRule[];
  readonly #prometheus: Prometheus;
  readonly #authority = new TestAuthority();
  readonly #server;
  /** Values as they were asked for, by metric. */
  readonly asked = new Map<string, number>();

  private constructor(rules: readonly ExternalRule[], prometheus: Prometheus) {
    this.#rules = rules;
    this.#prometheus = prometheus;
    const { cert, key } = this.#authority.issue("localhost");
    this.#server = createServer({ cert, key }, (request, response) => {
      void this.#answer(request.url ?? "", response);
    });
  }

  /** Serves the rules of the release's ConfigMap, and has the API server ask here. */
  static async start(plane: Plane, prometheus: Prometheus, configMap: string): Promise<ExternalMetrics> {
    const { data } = await plane.get("configmap", configMap);
    const { externalRules } = parse(data["externalRules.yaml"]) as { externalRules: readonly ExternalRule[] };
    const metrics = new ExternalMetrics(externalRules, prometheus);
    await new Promise<void>((resolve) => metrics.#server.listen(0, "127.0.0.1", resolve));
    const { port } = metrics.#server.address() as AddressInfo;
    // The API server reaches an aggregated API through a Service; this one is another name for loopback.
    await plane.kubectl(["apply", "-f", "-"], {
      apiVersion: "v1",
      kind: "Service",
      metadata: { name: "external-metrics", namespace: "kube-system" },
      spec: { type: "ExternalName", externalName: "localhost", ports: [{ port }] },
    });
    await plane.kubectl(["apply", "-f", "-"], {
      apiVersion: "apiregistration.k8s.io/v1",
      kind: "APIService",
      metadata: { name: `${VERSION}.${GROUP}` },
      spec: {
        group: GROUP,
        version: VERSION,
        groupPriorityMinimum: 100,
        versionPriority: 100,
        service: { name: "external-metrics", namespace: "kube-system", port },
        insecureSkipTLSVerify: true, // its certificate names localhost, and it is asked for as a service
      },
    });
    return metrics;
  }

  stop(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  async #answer(url: string, response: ServerResponse): Promise<void> {
    const send = (status: number, body: object) => {
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify(body));
    };
    try {
      const { pathname } = new URL(url, "https://localhost");
      if (pathname === `/apis/${GROUP_VERSION}`) return send(200, this.#resources());
      const name = new RegExp(`^/apis/${GROUP_VERSION}/namespaces/[^/]+/([^/]+)$`).exec(pathname)?.[1];
      const rule = this.#rules.find((each) => each.name.as === name);
      if (rule === undefined) return send(404, { kind: "Status", apiVersion: "v1", status: "Failure", code: 404 });
      const [sample] = await this.#prometheus.query(rule.metricsQuery);
      if (sample === undefined) return send(200, list([]));
      this.asked.set(rule.name.as, sample.value);
      send(200, list([{ metricName: rule.name.as, value: sample.value }]));
    } catch (error) {
      send(500, { kind: "Status", apiVersion: "v1", status: "Failure", code: 500, message: String(error) });
    }
  }

  #resources(): object {
    const resources = this.#rules.map(({ name }) => ({
      ...{ name: name.as, singularName: "", namespaced: true, kind: "ExternalMetricValueList", verbs: ["get"] },
    }));
    return { kind: "APIResourceList", apiVersion: "v1", groupVersion: GROUP_VERSION, resources };
  }
}

function list(values: readonly { metricName: string; value: number }[]): object {
  const timestamp = new Date().toISOString();
  const items = values.map(({ metricName, value }) => ({
    ...{ metricName, metricLabels: {}, timestamp },
    value: `${Math.round(value * 1000)}m`, // a quantity: thousandths
  }));
  return { kind: "ExternalMetricValueList", apiVersion: GROUP_VERSION, metadata: {}, items };
}
