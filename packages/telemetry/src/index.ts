/** Logs, metrics and traces, the same in every service. */
export { createLogger, LOG_LEVELS, type Logger } from "./logger.ts";
export { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, Histogram, type Registry } from "./metrics.ts";
export {
  addLogFields,
  currentLogFields,
  currentSpan,
  currentTraceId,
  inSpan,
  type LogFields,
  startSpan,
  traced,
  withLogFields,
} from "./scope.ts";
export { type Attributes, NO_SPAN, type Span, type SpanOptions, type TraceContext } from "./span.ts";
export { traceContextOf } from "./traceparent.ts";
export { startTracing, type Tracing } from "./tracing.ts";
export { tracingVariables } from "./tracing-variables.ts";
