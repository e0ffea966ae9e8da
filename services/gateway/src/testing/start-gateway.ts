import { type InvariantError, systemClock, systemRandom } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import type { GatewayApp } from "../app.ts";
import { buildGateway } from "../build-gateway.ts";
import { readGatewayConfig } from "../config.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { stopGracefully } from "../graceful-stop.ts";
import type { InFlight } from "../in-flight.ts";
import type { SharedStore } from "../shared/shared-store.ts";

export interface TestGateway {
  readonly url: string;
  /** Of the gRPC API, where `env` has it on. */
  readonly grpcAddress: string | undefined;
  readonly app: GatewayApp;
  readonly fleet: Fleet;
  readonly inFlight: InFlight;
  readonly store: SharedStore;
  /** Broken invariants that were reported. */
  readonly bugs: InvariantError[];
  /** Resolves when `condition` holds of the fleet's views. */
  until(condition: (views: ReturnType<Fleet["views"]>) => boolean): Promise<void>;
  /** Stops as main.ts does. */
  stop(options?: { timeoutMs: number }): Promise<void>;
}

/**
 * A whole gateway in this process, on a free port of loopback, that knows `workers`; `env` lies over the tests' own. The
 * cache is off where that does not turn it on: what a test asks for is made.
 */
export async function startGateway(
  workers: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<TestGateway> {
  const clock = systemClock;
  const log = createLogger("gateway", "silent");
  const read = readGatewayConfig({
    ATELIER_WORKERS: workers.join(",") || "127.0.0.1:1",
    ATELIER_REQUEST_TIMEOUT_MS: "30000",
    ATELIER_BODY_MAX_BYTES: String(1024 * 1024),
    ATELIER_CACHE_SCOPE: "off",
    ...env,
  });
  const config = workers.length === 0 ? { ...read, workers } : read; // a test may want none at all
  const bugs: InvariantError[] = [];
  const gateway = await buildGateway(config, { clock, random: systemRandom, log, onBug: (bug) => bugs.push(bug) });
  const { app, fleet, inFlight, grpc } = gateway;
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  const grpcAddress = config.grpcListen && (await grpc?.listen(config.grpcListen));
  fleet.start();
  return {
    url,
    grpcAddress,
    app,
    fleet,
    inFlight,
    store: gateway.store,
    bugs,
    until: (condition) => {
      if (condition(fleet.views())) return Promise.resolve();
      return new Promise((resolve) => {
        const end = fleet.onChange(() => {
          if (!condition(fleet.views())) return;
          end();
          resolve();
        });
      });
    },
    stop: async ({ timeoutMs } = { timeoutMs: 1_000 }) => {
      await stopGracefully(app, { inFlight, grpc, clock, timeoutMs });
      await gateway.close();
    },
  };
}

export const allReady = (views: ReturnType<Fleet["views"]>): boolean => views.every((worker) => worker.ready);
