import { systemClock, systemRandom, toServingError } from "@atelier/core";
import { tellParent, untilAskedToStop } from "@atelier/lifecycle";
import { type TlsFileNames, TlsFiles } from "@atelier/rpc";
import { createLogger, createRegistry, type Logger, startTracing, VERSION } from "@atelier/telemetry";
import { Bulk } from "./bulk/bulk.ts";
import { BulkMetrics } from "./bulk/bulk-metrics.ts";
import { readWorkerConfig } from "./config.ts";
import { chooseDevice } from "./device/choose-device.ts";
import { deviceName, narrowLanesOf } from "./device/device.ts";
import { checkTensorrtCache, useTensorrtCache } from "./device/onnx/tensorrt-cache.ts";
import { WorkerMetrics } from "./metrics.ts";
import { serveMetrics } from "./metrics-server.ts";
import { createPipeline } from "./pipeline.ts";
import { serveWorker } from "./server/worker-server.ts";

/** What is not delivered by then is lost: a process that stops has more to lose than its last spans. */
const TRACES_CLOSE_MS = 2000;

try {
  await main();
} catch (error) {
  fail(error);
}

async function main(): Promise<void> {
  const config = readWorkerConfig(process.env);
  const logger = createLogger("worker", config.logLevel, { worker_id: config.id }, config.logPrompts);
  const stopping = untilAskedToStop();
  const tracing = await startTracing({ service: "worker", env: process.env, version: VERSION, log: logger });

  const { tensorrtCacheDir } = config;
  if (tensorrtCacheDir !== undefined) await useTensorrtCache(tensorrtCacheDir);
  const device = await chooseDevice(config, logger);
  const identity = {
    id: config.id,
    pool: config.pool,
    device: deviceName(device),
    simulated: device.kind === "simulated",
  };
  const metrics = new WorkerMetrics(createRegistry("worker", config));
  const tls = config.tls && openTls(config.tls, logger);
  const server = await serveWorker({ listen: config.listen, identity, metrics, logger, tls });
  const metricsServer = await serveMetrics(config.metricsListen, metrics.registry, () => server.serving);
  tellParent({ type: "listening", address: server.address, metricsAddress: metricsServer.address });
  logger.info({ address: server.address, metrics: metricsServer.address, device: identity.device }, "listening");

  // Those that denoise, as many that are ready to, and those that are decoded and stored meanwhile.
  const pulledMax = Math.max(32, 4 * config.stepBatchMax, 4 * narrowLanesOf(device));
  const pipeline = await createPipeline({
    bundleDirs: config.bundleDirs,
    device,
    limits: { ...config, ...(config.bulk && { pulledMax }) },
    memoryBudgetBytes: config.memoryBudgetBytes,
    observer: metrics,
    stateDir: config.stateDir,
    onProblem: (error) => logger.warn({ err: error }, error.detail),
    onFatal: fail,
  });
  metrics.state = () => pipeline.state;
  server.show(pipeline);
  await pipeline.preload(config.preload);
  if (tensorrtCacheDir !== undefined) await checkTensorrtCache(tensorrtCacheDir, logger);
  server.open();
  const bulk =
    config.bulk &&
    new Bulk(config.bulk, {
      pipeline,
      identity,
      metrics: new BulkMetrics(metrics.registry, logger),
      logger,
      clock: systemClock,
      random: systemRandom,
      heldMax: pulledMax,
      onFatal: fail,
    });
  if (bulk !== undefined) server.pulls(bulk);
  bulk?.start();
  tellParent({ type: "ready" });
  const { places, memoryBudgetBytes, memoryUsedBytes } = pipeline.state;
  const models = places.map(({ id, status }) => `${id} (${status})`);
  logger.info({ models, device, memoryBudgetBytes, memoryUsedBytes }, "ready");

  const reason = await stopping;
  logger.info({ reason, drainMs: config.drainMs }, "draining");
  await server.drain({ timeoutMs: config.drainMs });
  await bulk?.close();
  await pipeline.close();
  await server.close();
  await metricsServer.close();
  tls?.close();
  await tracing.close({ timeoutMs: TRACES_CLOSE_MS });
  logger.info("stopped");
  process.exit(0); // the stages' threads have ended: nothing runs that this could tear apart
}

function openTls(files: TlsFileNames, logger: Logger): TlsFiles {
  return new TlsFiles(files, {
    clock: systemClock,
    changed: (problem) => {
      if (problem === undefined) logger.info("certificates were renewed");
      else logger.warn({ problem }, "renewed certificates are not fit for use; going on with the last ones");
    },
  });
}

/** Something that ends the process: said to the parent, or on standard error where none listens. */
function fail(error: unknown): never {
  const { message } = error instanceof Error ? error : toServingError(error);
  if (!process.connected) process.stderr.write(`atelier worker: ${message}\n`);
  tellParent({ type: "failed", message });
  process.exit(1);
}
