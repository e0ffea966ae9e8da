import { ConfigError, systemClock, systemRandom } from "@atelier/core";
import { listen } from "@atelier/http";
import { tellParent, untilAskedToStop } from "@atelier/lifecycle";
import { createLogger, type Logger, startTracing, VERSION } from "@atelier/telemetry";
import { buildGateway } from "./build-gateway.ts";
import { type GatewayConfig, readGatewayConfig } from "./config.ts";
import { stopGracefully } from "./graceful-stop.ts";

async function main(config: GatewayConfig, log: Logger, stopping: Promise<string>): Promise<void> {
  const clock = systemClock;
  const gateway = await buildGateway(config, { clock, random: systemRandom, log, onBug: crash });
  const { app, fleet, inFlight, grpc } = gateway;

  const listening = Promise.all([
    listen(app, { ...config.listen, variable: "ATELIER_LISTEN" }),
    config.grpcListen && grpc?.listen(config.grpcListen),
  ]);
  const [url, grpcAddress] = await listening.catch(async (error: unknown) => {
    await gateway.close(); // what it has open would keep the process alive
    throw error;
  });
  if (grpcAddress !== undefined) log.info({ address: grpcAddress }, "gRPC API listening");
  tellParent({ type: "listening", address: url, ...(grpcAddress !== undefined && { grpcAddress }) });
  const endReadyWatch = fleet.onChange(() => {
    if (!fleet.views().some((worker) => worker.ready)) return;
    endReadyWatch();
    tellParent({ type: "ready" });
  });
  fleet.start();

  const reason = await stopping;
  log.info({ reason, in_flight: inFlight.count }, "stopping");
  await stopGracefully(app, { inFlight, grpc, clock, timeoutMs: config.drainTimeoutMs });
  await gateway.close();
  log.info("stopped");
}

/** A bug ends the process as an uncaught error does, once its caller was answered. */
function crash(bug: Error): void {
  setImmediate(() => {
    throw bug;
  });
}

/** What is not delivered by then is lost: a process that stops has more to lose than its last spans. */
const TRACES_CLOSE_MS = 2_000;

try {
  const stopping = untilAskedToStop();
  const config = readGatewayConfig(process.env);
  const log = createLogger("gateway", config.logLevel, {}, config.logPrompts);
  const tracing = await startTracing({ service: "gateway", env: process.env, version: VERSION, log });
  await main(config, log, stopping);
  await tracing.close({ timeoutMs: TRACES_CLOSE_MS });
  process.exit(0); // an IPC channel would keep the process alive
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  // A parent that listens says why we end; of a bug it would lack the stack.
  if (!(error instanceof ConfigError)) console.error(error);
  else if (!process.connected) console.error(message);
  tellParent({ type: "failed", message });
  process.exitCode = 1;
  if (process.connected) process.disconnect();
}
