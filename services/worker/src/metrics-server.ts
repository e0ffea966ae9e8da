import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Exposition, type Registry } from "@atelier/telemetry";
import { type Address, addressText, cannotListen } from "./config.ts";

export interface MetricsServer {
  /** "host:port", the port that was bound. */
  readonly address: string;
  close(): Promise<void>;
}

/** GET /metrics, as OpenMetrics for whoever accepts that; GET /healthz is 200 while `healthy()`, 503 otherwise. */
export async function serveMetrics(
  listen: Address,
  registry: Registry,
  healthy: () => boolean,
): Promise<MetricsServer> {
  const exposition = new Exposition(registry);
  const server = createServer(async (request, response) => {
    if (request.method !== "GET") {
      response.writeHead(405).end();
    } else if (request.url === "/metrics") {
      const { contentType, body } = await exposition.answer(request.headers.accept);
      response.writeHead(200, { "content-type": contentType, vary: "accept" }).end(body);
    } else if (request.url === "/healthz") {
      const ok = healthy();
      response.writeHead(ok ? 200 : 503, { "content-type": "text/plain" }).end(ok ? "ok\n" : "not serving\n");
    } else {
      response.writeHead(404).end();
    }
  });
  server.listen(listen.port, listen.host);
  await once(server, "listening").catch((error: unknown) => {
    throw cannotListen("ATELIER_WORKER_METRICS_LISTEN", addressText(listen), error);
  });
  const { port } = server.address() as AddressInfo;
  return {
    address: addressText({ host: listen.host, port }),
    close: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}
