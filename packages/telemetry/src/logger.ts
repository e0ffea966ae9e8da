import { type Logger, pino } from "pino";

export type { Logger };

/** JSON lines to standard error; `service` and whatever `bindings` say are on every line. */
export function createLogger(service: string, level: string, bindings: Record<string, string> = {}): Logger {
  return pino({ level, base: { service, ...bindings }, timestamp: pino.stdTimeFunctions.isoTime }, pino.destination(2));
}

/** The levels that a configuration may name. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;
