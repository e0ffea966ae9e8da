import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { KubeApi } from "./kube-api.ts";
import type { Json, Plane } from "./plane.ts";
import { loopbackOf } from "./service-proxy.ts";

/**
 * What a PodMonitor makes of the chart's pods, for a Prometheus that was built without Kubernetes: a list over HTTP of their
 * ports named http and metrics, labelled with namespace and pod, at the addresses of the processes.
 */
export class PodTargets {
  readonly #api: KubeApi;
  readonly #namespace: string;
  readonly #server: Server;

  private constructor(plane: Plane, namespace: string) {
    this.#api = new KubeApi(plane);
    this.#namespace = namespace;
    this.#server = createServer((_request, response) => {
      void this.#targets().then(
        (targets) => {
          response.setHeader("content-type", "application/json");
          response.end(JSON.stringify(targets));
        },
        (error: unknown) => {
          response.statusCode = 500; // Prometheus keeps the list that it has
          response.end(String(error));
        },
      );
    });
  }

  static async start(plane: Plane, namespace: string): Promise<PodTargets> {
    const targets = new PodTargets(plane, namespace);
    await new Promise<void>((resolve) => targets.#server.listen(0, "127.0.0.1", resolve));
    return targets;
  }

  /** An entry of scrape_configs. */
  get scrapeConfig(): object {
    const url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/`;
    return {
      ...{ job_name: "pods", scrape_interval: "1s", scrape_timeout: "1s", honor_labels: true },
      http_sd_configs: [{ url, refresh_interval: "1s" }],
    };
  }

  stop(): void {
    this.#server.closeAllConnections();
    this.#server.close();
    this.#api.close();
  }

  async #targets(): Promise<object[]> {
    const { items } = await this.#api.call("GET", `/api/v1/namespaces/${this.#namespace}/pods`);
    return items
      .filter(({ status }: Json) => status.podIP !== undefined)
      .flatMap(({ metadata, spec, status }: Json) => {
        const ports = spec.containers[0].ports.filter(({ name }: Json) => name === "http" || name === "metrics");
        return ports.map(({ containerPort }: Json) => ({
          targets: [`${loopbackOf(status.podIP)}:${containerPort}`],
          labels: { namespace: metadata.namespace, pod: metadata.name },
        }));
      });
  }
}
