import { ConfigError, systemClock, systemRandom } from "@atelier/core";
import { createLogger, type Logger } from "@atelier/telemetry";
import { buildApp } from "./app.ts";
import { Balancer } from "./balancer.ts";
import { type GatewayConfig, readGatewayConfig } from "./config.ts";
import { Dispatcher } from "./dispatch.ts";
import { Fleet } from "./fleet/fleet.ts";
import { WorkerClient } from "./fleet/worker-client.ts";
import { staticDirectory } from "./fleet/worker-directory.ts";
import { stopGracefully } from "./graceful-stop.ts";
import { InFlight } from "./in-flight.ts";
import { listen } from "./listen.ts";
import { createGatewayMetrics } from "./metrics.ts";
import { onShutdown, parentProcess } from "./process.ts";

async function main(config: GatewayConfig, log: Logger): Promise<void> {
  const clock = systemClock;
  const random = systemRandom;
  const fleet = new Fleet({
    directory: staticDirectory(config.workers),
    connect: (address) => new WorkerClient(address),
    clock,
    random,
    log,
  });
  const inFlight = new InFlight({ max: config.inFlightMax });
  const app = await buildApp({
    ...config,
    fleet,
    inFlight,
    clock,
    log,
    dispatcher: new Dispatcher(fleet, new Balancer(random)),
    metrics: createGatewayMetrics({ fleet, inFlight }),
    onBug: crash,
  });

  const url = await listen(app, config.listen, log);
  parentProcess.tell({ type: "listening", url });
  const endReadyWatch = fleet.onChange(() => {
    if (!fleet.views().some((worker) => worker.ready)) return;
    endReadyWatch();
    parentProcess.tell({ type: "ready" });
  });
  fleet.start();

  onShutdown(async (cause) => {
    log.info({ cause, in_flight: inFlight.count }, "stopping");
    await stopGracefully(app, { inFlight, clock, timeoutMs: config.drainTimeoutMs });
    fleet.close();
    log.info("stopped");
  });
}

/** A bug ends the process as an uncaught error does, once its caller was answered. */
function crash(bug: Error): void {
  setImmediate(() => {
    throw bug;
  });
}

try {
  const config = readGatewayConfig(process.env);
  await main(config, createLogger("gateway", config.logLevel));
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  console.error(error instanceof ConfigError ? message : error);
  parentProcess.tell({ type: "failed", message });
  process.exitCode = 1;
  parentProcess.leave();
}
