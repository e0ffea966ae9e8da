/** Logs, metrics and traces, the same in every service. */
export { buildVariables, VERSION } from "./build.ts";
export { type Exposed, Exposition } from "./exposition.ts";
export { createLogger, LOG_LEVELS, LOG_PROMPTS, type Logger, type LogPrompts } from "./logger.ts";
export {
  type Build,
  Counter,
  createRegistry,
  DURATION_BUCKETS_S,
  Gauge,
  Histogram,
  type Registry,
  TracedHistogram,
} from "./metrics.ts";
export {
  addLogFields,
  currentLogFields,
  currentRequestId,
  currentSpan,
  currentTraceId,
  inScope,
  inSpan,
  type LogFields,
  outOfScope,
  type Scope,
  startSpan,
  traced,
} from "./scope.ts";
export { type Attributes, NO_SPAN, type Span, type SpanOptions, type TraceContext } from "./span.ts";
export { traceContextOf } from "./traceparent.ts";
export { startTracing, type Tracing } from "./tracing.ts";
export { telemetryVariables } from "./tracing-variables.ts";
