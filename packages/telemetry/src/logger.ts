import { ServingError } from "@atelier/core";
import { type Logger, pino, stdSerializers } from "pino";
import { type LogPrompts, redact } from "./redact.ts";
import { currentLogFields } from "./scope.ts";

export { LOG_PROMPTS, type LogPrompts } from "./redact.ts";
export type { Logger };

/**
 * JSON lines to standard error. `service` and whatever `bindings` say are on every line, and on those that are logged for a
 * request its id, its tenant and its trace as well. No line holds a secret, nor a prompt beyond what `prompts` allows.
 */
export function createLogger(
  service: string,
  level: string,
  bindings: Record<string, string> = {},
  prompts: LogPrompts = "never",
): Logger {
  return pino(
    {
      level,
      base: { service, ...bindings },
      timestamp: pino.stdTimeFunctions.isoTime,
      mixin: currentLogFields,
      serializers: { err: (error: Error) => serializeError(error, prompts) },
      hooks: { streamWrite: (line) => redact(line, prompts) },
    },
    pino.destination(2),
  );
}

/** The levels that a configuration may name. */
export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;

/**
 * What a caller got wrong is described by what the caller wrote: of that only the kind and the field are logged. What may
 * be expected to fail says by its code where; only of a bug the stack is worth its length.
 */
function serializeError(error: Error, prompts: LogPrompts): object {
  if (!(error instanceof ServingError) || error.code === "INTERNAL") return stdSerializers.err(error);
  const { name: type, code, field, detail, cause } = error;
  if (prompts !== "full" && code === "INVALID_REQUEST") return { type, code, field };
  return { type, code, field, message: detail, ...(cause instanceof Error && { cause: cause.message }) };
}
