import { setFlagsFromString } from "node:v8";
import { ConfigError, systemClock, systemRandom } from "@atelier/core";
import { listen } from "@atelier/http";
import { tellParent, untilAskedToStop } from "@atelier/lifecycle";
import { createLogger, type Logger, startTracing, VERSION } from "@atelier/telemetry";
import { buildJobs } from "./build-jobs.ts";
import { type JobsConfig, readJobsConfig } from "./config.ts";

// Sheets and events are mostly garbage a moment later. A young generation that does not grow keeps a service that reads
// 300,000 rows at 220 MB rather than 350, and takes no longer.
setFlagsFromString("--semi-space-growth-factor=1");

async function main(config: JobsConfig, log: Logger, stopping: Promise<string>): Promise<void> {
  const asked = new AbortController();
  void stopping.then(() => asked.abort());
  const service = await buildJobs(config, {
    clock: systemClock,
    random: systemRandom,
    log,
    onBug: crash,
    onReplaced: (why) => crash(new Error(`${why}: this instance ends at once`)),
    stopping: asked.signal,
  });
  if (service === undefined) return; // asked to stop while it waited
  const { app } = service;
  const address = await listen(app, { ...config.listen, variable: "ATELIER_JOBS_LISTEN" });
  tellParent({ type: "listening", address });
  tellParent({ type: "ready" });
  log.info({ address }, "listening");

  const reason = await stopping;
  log.info({ reason }, "stopping");
  const cut = systemClock.after(config.drainTimeoutMs, () => app.server.closeAllConnections());
  await app.close();
  cut();
  await service.close();
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
  const config = readJobsConfig(process.env);
  const log = createLogger("jobs", config.logLevel, {}, config.logPrompts);
  const tracing = await startTracing({ service: "jobs", env: process.env, version: VERSION, log });
  await main(config, log, stopping);
  await tracing.close({ timeoutMs: TRACES_CLOSE_MS });
  process.exit(0); // an IPC channel would keep the process alive
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof ConfigError)) console.error(error);
  else if (!process.connected) console.error(message);
  tellParent({ type: "failed", message });
  process.exitCode = 1;
  if (process.connected) process.disconnect();
}
