/** Logs and metrics, the same in every service. */
export { createLogger, LOG_LEVELS, type Logger } from "./logger.ts";
export { Counter, createRegistry, DURATION_BUCKETS_S, Gauge, Histogram, type Registry } from "./metrics.ts";
