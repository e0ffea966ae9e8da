import { fromEnv } from "@atelier/core";
import { z } from "zod";
import { LOG_LEVELS } from "./logger.ts";
import { LOG_PROMPTS } from "./redact.ts";

export const SAMPLERS = [
  "always_on",
  "always_off",
  "traceidratio",
  "parentbased_always_on",
  "parentbased_always_off",
  "parentbased_traceidratio",
] as const;

const url = () =>
  z.string().refine((text) => /^https?:$/.test(URL.parse(text)?.protocol ?? ""), "must be an http:// or https:// URL");

/** name=value,name=value; percent-encoded. Source: OpenTelemetry, "OTLP exporter configuration" (W3C Baggage's form). */
const pairs = () =>
  z.string().transform((text, context) => {
    const read: Record<string, string> = {};
    for (const pair of text.split(",").filter((part) => part.trim() !== "")) {
      const [, name, value] = /^\s*([^=\s]+)\s*=\s*(.*?)\s*$/.exec(pair) ?? [];
      try {
        if (name === undefined || value === undefined) throw new Error("no pair");
        read[decodeURIComponent(name)] = decodeURIComponent(value);
      } catch {
        context.addIssue({ code: "custom", message: "must be name=value pairs, percent-encoded, with commas between" });
        return z.NEVER;
      }
    }
    return read;
  });

/**
 * Of every service: OpenTelemetry's own variables, as far as they are heeded.
 *
 * Source: OpenTelemetry specification 1.x, "Environment variables" and "OTLP exporter configuration".
 */
const tracingVariables = {
  OTEL_EXPORTER_OTLP_ENDPOINT: url().optional().meta({
    description: "where traces are sent by OTLP over HTTP, as `http://collector:4318`; `/v1/traces` is added",
    unset: "none: no traces",
  }),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: url().optional().describe("the same, taken as it is"),
  OTEL_EXPORTER_OTLP_PROTOCOL: z
    .enum(["http/protobuf", "http/json"], { error: "must be http/protobuf or http/json" })
    .default("http/protobuf")
    .describe("`http/protobuf` or `http/json`"),
  OTEL_EXPORTER_OTLP_HEADERS: pairs()
    .default({})
    .describe("headers sent along, as a collector's key: `name=value` pairs with commas between, percent-encoded"),
  OTEL_EXPORTER_OTLP_TIMEOUT: fromEnv
    .integer({ min: 1, max: 60_000 })
    .default(10_000)
    .describe("milliseconds after which a delivery is given up"),
  OTEL_TRACES_SAMPLER: z
    .enum(SAMPLERS, { error: `must be one of ${SAMPLERS.join(", ")}` })
    .default("parentbased_always_on")
    .describe(
      "which traces are recorded: `always_on`, `always_off`, `traceidratio`, or each of them with " +
        "`parentbased_` before it: a caller's own decision comes first",
    ),
  OTEL_TRACES_SAMPLER_ARG: z.coerce
    .number({ error: "must be a number from 0 to 1" })
    .min(0)
    .max(1)
    .default(1)
    .describe("the share of traces that `traceidratio` records, 0 to 1"),
  OTEL_SERVICE_NAME: z.string().max(255).optional().meta({
    description: "the name under which traces show the service",
    unset: "`atelier-` and the service's own name",
  }),
  OTEL_RESOURCE_ATTRIBUTES: pairs()
    .default({})
    .describe("what every span says of the process, as `deployment.environment.name=production`"),
  OTEL_BSP_SCHEDULE_DELAY: fromEnv
    .integer({ min: 1, max: 60_000 })
    .default(5_000)
    .describe("milliseconds at most until ended spans are sent"),
  OTEL_SDK_DISABLED: fromEnv.boolean().default(false).describe("`true`: no traces, whatever the others say"),
};

/** Of every service: what its logs hold, and where its traces go. */
export const telemetryVariables = {
  ATELIER_LOG_LEVEL: z
    .enum(LOG_LEVELS, { error: `must be one of ${LOG_LEVELS.join(", ")}` })
    .default("info")
    .describe("`trace` to `fatal`, or `silent`"),
  ATELIER_LOG_PROMPTS: z
    .enum(LOG_PROMPTS, { error: `must be one of ${LOG_PROMPTS.join(", ")}` })
    .default("never")
    .describe(
      "what logs may hold of prompts: `never` nothing, `digest` what recognizes the same one again, `full` the words",
    ),
  ...tracingVariables,
};

export const tracingEnvironment = z.object(tracingVariables);
export type TracingVariables = z.output<typeof tracingEnvironment>;

/** Where traces go; undefined: nowhere. */
export function tracesUrl(read: TracingVariables): string | undefined {
  if (read.OTEL_SDK_DISABLED) return undefined;
  const { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: exact, OTEL_EXPORTER_OTLP_ENDPOINT: base } = read;
  return exact ?? (base === undefined ? undefined : `${base.replace(/\/$/, "")}/v1/traces`);
}
