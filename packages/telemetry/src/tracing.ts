import { readConfig } from "@atelier/core";
import type { Logger } from "pino";
import { useTracer } from "./scope.ts";
import { tracesUrl, tracingEnvironment } from "./tracing-variables.ts";

export interface TracingOptions {
  /** The service's name, as "gateway". */
  readonly service: string;
  /** OTEL_* of it is read: see `telemetryVariables`. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly version?: string;
  /** Told when traces cannot be delivered, at most once a minute. */
  readonly log?: Pick<Logger, "warn">;
}

export interface Tracing {
  readonly on: boolean;
  /** Sends what is left, for as long as this; what then is unsent is lost. */
  close(limits: { timeoutMs: number }): Promise<void>;
}

/**
 * Begins to record traces in this process, where the environment names a place to send them to. Elsewhere nothing of the
 * SDK is even imported, and every span is NO_SPAN.
 *
 * @throws ConfigError naming every bad variable.
 */
export async function startTracing({ service, env, version, log }: TracingOptions): Promise<Tracing> {
  const read = readConfig(tracingEnvironment, env);
  const url = tracesUrl(read);
  if (url === undefined) return { on: false, close: async () => {} };
  const { openTracer } = await import("./sdk-tracer.ts");
  const { tracer, close } = await openTracer({ service, version, url, read, log });
  useTracer(tracer);
  return {
    on: true,
    close: async (limits) => {
      useTracer(undefined);
      await close(limits);
    },
  };
}
