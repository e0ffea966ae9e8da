import { type InvariantError, systemClock, systemRandom } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { type AppOptions, buildApp, type GatewayApp } from "../app.ts";
import { Balancer } from "../balancer.ts";
import { Dispatcher } from "../dispatch.ts";
import { Fleet } from "../fleet/fleet.ts";
import { WorkerClient } from "../fleet/worker-client.ts";
import { staticDirectory } from "../fleet/worker-directory.ts";
import { stopGracefully } from "../graceful-stop.ts";
import { InFlight } from "../in-flight.ts";
import { createGatewayMetrics } from "../metrics.ts";

export interface TestGateway {
  readonly url: string;
  readonly app: GatewayApp;
  readonly fleet: Fleet;
  readonly inFlight: InFlight;
  /** Broken invariants that were reported. */
  readonly bugs: InvariantError[];
  /** Resolves when `condition` holds of the fleet's views. */
  until(condition: (views: ReturnType<Fleet["views"]>) => boolean): Promise<void>;
  /** Stops as main.ts does. */
  stop(options?: { timeoutMs: number }): Promise<void>;
}

export type TestGatewayOptions = Partial<Pick<AppOptions, "requestTimeoutMs" | "bodyMaxBytes">> & {
  inFlightMax?: number;
};

/** A whole gateway in this process, on a free port of loopback, that knows `workers`. */
export async function startGateway(workers: readonly string[], options: TestGatewayOptions = {}): Promise<TestGateway> {
  const clock = systemClock;
  const random = systemRandom;
  const log = createLogger("gateway", "silent");
  const fleet = new Fleet({
    directory: staticDirectory(workers),
    connect: (address) => new WorkerClient(address),
    clock,
    random,
    log,
  });
  const inFlight = new InFlight({ max: options.inFlightMax ?? 256 });
  const bugs: InvariantError[] = [];
  const app = await buildApp({
    fleet,
    inFlight,
    clock,
    log,
    dispatcher: new Dispatcher(fleet, new Balancer(random)),
    metrics: createGatewayMetrics({ fleet, inFlight }),
    requestTimeoutMs: options.requestTimeoutMs ?? 30_000,
    bodyMaxBytes: options.bodyMaxBytes ?? 1024 * 1024,
    onBug: (bug) => bugs.push(bug),
  });
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  fleet.start();
  return {
    url,
    app,
    fleet,
    inFlight,
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
      await stopGracefully(app, { inFlight, clock, timeoutMs });
      fleet.close();
    },
  };
}

export const allReady = (views: ReturnType<Fleet["views"]>): boolean => views.every((worker) => worker.ready);
