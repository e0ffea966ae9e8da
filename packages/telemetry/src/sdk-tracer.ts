import { hostname } from "node:os";
import {
  type Context,
  createTraceState,
  DiagLogLevel,
  diag,
  ROOT_CONTEXT,
  type Attributes as SdkAttributes,
  type Span as SdkSpan,
  type Tracer as SdkTracer,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  trace,
} from "@opentelemetry/api";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  type Sampler,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from "@opentelemetry/sdk-trace";
import type { Logger } from "pino";
import { errorCodeOf } from "./error-code.ts";
import { outOfScope } from "./scope.ts";
import { type Attributes, type Span, type SpanOptions, type TraceContext, type Tracer, unrecorded } from "./span.ts";
import { parseTraceparent, traceparentOf } from "./traceparent.ts";
import type { TracingVariables } from "./tracing-variables.ts";

/** Of one span: a generation of 200 step batches tells of each. */
const EVENTS_MAX = 256;
/** Ended spans that wait to be sent; beyond it they are dropped, since no request waits for a collector. */
const WAITING_SPANS_MAX = 8_192;
const PROBLEM_EVERY_MS = 60_000;

interface SdkTracerOptions {
  readonly service: string;
  readonly version: string | undefined;
  readonly url: string;
  readonly read: TracingVariables;
  readonly log: Pick<Logger, "warn"> | undefined;
}

/** OpenTelemetry's SDK behind our port. Imported only where there is somewhere to send traces to. */
export async function openTracer({ service, version, url, read, log }: SdkTracerOptions): Promise<{
  tracer: Tracer;
  close(limits: { timeoutMs: number }): Promise<void>;
}> {
  tellProblems(log);
  const { OTLPTraceExporter } =
    read.OTEL_EXPORTER_OTLP_PROTOCOL === "http/json"
      ? await import("@opentelemetry/exporter-trace-otlp-http")
      : await import("@opentelemetry/exporter-trace-otlp-proto");
  const provider = new TracerProvider({
    sampler: samplerOf(read),
    resource: resourceFromAttributes({
      "service.name": read.OTEL_SERVICE_NAME ?? `atelier-${service}`,
      ...(version !== undefined && { "service.version": version }),
      "service.instance.id": `${hostname()}:${process.pid}`,
      "host.name": hostname(),
      "process.pid": process.pid,
      ...read.OTEL_RESOURCE_ATTRIBUTES,
    }),
    spanLimits: { eventCountLimit: EVENTS_MAX, attributeValueLengthLimit: 1024 },
    spanProcessors: [
      new BatchSpanProcessor({
        exporter: new OTLPTraceExporter({
          url,
          headers: read.OTEL_EXPORTER_OTLP_HEADERS,
          timeoutMillis: read.OTEL_EXPORTER_OTLP_TIMEOUT,
        }),
        maxQueueSize: WAITING_SPANS_MAX,
        scheduledDelayMillis: read.OTEL_BSP_SCHEDULE_DELAY,
        exportTimeoutMillis: read.OTEL_EXPORTER_OTLP_TIMEOUT + 1000,
      }),
    ],
  });
  const sdk = provider.getTracer("atelier", version);
  return {
    tracer: { start: (name, options, parent) => begin(sdk, name, options, remoteContext(parent)) },
    close: async ({ timeoutMs }) => {
      const cut = Promise.withResolvers<void>();
      const timer = setTimeout(cut.resolve, timeoutMs);
      // What could not be delivered was told as a problem.
      await Promise.race([provider.shutdown().catch(() => {}), cut.promise]);
      clearTimeout(timer);
    },
  };
}

function samplerOf({ OTEL_TRACES_SAMPLER: name, OTEL_TRACES_SAMPLER_ARG: share }: TracingVariables): Sampler {
  const root = name.endsWith("always_on")
    ? new AlwaysOnSampler()
    : name.endsWith("always_off")
      ? new AlwaysOffSampler()
      : new TraceIdRatioBasedSampler(share);
  return name.startsWith("parentbased") ? new ParentBasedSampler({ root }) : root;
}

const KINDS = {
  internal: SpanKind.INTERNAL,
  server: SpanKind.SERVER,
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER,
} as const;

function begin(sdk: SdkTracer, name: string, options: SpanOptions, context: Context): Span {
  const { kind = "internal", attributes, links, startMs } = options;
  const span = sdk.startSpan(
    name,
    {
      kind: KINDS[kind],
      ...(attributes !== undefined && { attributes: attributes as SdkAttributes }),
      ...(links !== undefined && { links: links.flatMap(linkTo) }),
      ...(startMs !== undefined && { startTime: startMs }),
    },
    context,
  );
  return span.isRecording() ? new RecordedSpan(sdk, span) : unrecorded(contextOf(span.spanContext()));
}

class RecordedSpan implements Span {
  readonly recording = true;
  readonly #sdk: SdkTracer;
  readonly #span: SdkSpan;
  readonly #linked: string[] = [];

  constructor(sdk: SdkTracer, span: SdkSpan) {
    this.#sdk = sdk;
    this.#span = span;
  }

  get traceId(): string {
    return this.#span.spanContext().traceId;
  }

  get context(): TraceContext {
    return contextOf(this.#span.spanContext());
  }

  child(name: string, options: SpanOptions = {}): Span {
    return begin(this.#sdk, name, options, trace.setSpan(ROOT_CONTEXT, this.#span));
  }

  set(attributes: Attributes): void {
    this.#span.setAttributes(attributes as SdkAttributes); // it leaves out what is undefined
  }

  event(name: string, attributes?: Attributes, atMs?: number): void {
    this.#span.addEvent(name, attributes as SdkAttributes, atMs);
  }

  link(other: TraceContext | undefined): void {
    if (other === undefined || this.#linked.includes(other.traceparent)) return;
    this.#linked.push(other.traceparent);
    this.#span.addLinks(linkTo(other));
  }

  fail(error: unknown): void {
    this.#span.setAttribute("error.type", errorCodeOf(error));
    this.#span.setStatus({ code: SpanStatusCode.ERROR });
  }

  end(atMs?: number): void {
    this.#span.end(atMs);
  }
}

function linkTo(other: TraceContext | undefined): { context: SpanContext }[] {
  const context = other && spanContextOf(other);
  return context === undefined ? [] : [{ context }];
}

function remoteContext(parent: TraceContext | undefined): Context {
  const context = parent && spanContextOf(parent);
  return context === undefined ? ROOT_CONTEXT : trace.setSpanContext(ROOT_CONTEXT, context);
}

function spanContextOf({ traceparent, tracestate }: TraceContext): SpanContext | undefined {
  const parent = parseTraceparent(traceparent);
  if (parent === undefined) return undefined;
  const { traceId, spanId, sampled } = parent;
  return {
    traceId,
    spanId,
    traceFlags: sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
    isRemote: true,
    ...(tracestate !== undefined && { traceState: createTraceState(tracestate) }),
  };
}

function contextOf(context: SpanContext): TraceContext {
  const { traceId, spanId, traceFlags, traceState } = context;
  const tracestate = traceState?.serialize();
  return {
    traceparent: traceparentOf({ traceId, spanId, sampled: (traceFlags & TraceFlags.SAMPLED) !== 0 }),
    ...(tracestate !== undefined && tracestate !== "" && { tracestate }),
  };
}

/** Traces that cannot be delivered harm nothing but themselves: it is said now and then. */
function tellProblems(log: Pick<Logger, "warn"> | undefined): void {
  if (log === undefined) return;
  let toldAtMs = Number.NEGATIVE_INFINITY;
  const tell = (problem: string) => {
    const nowMs = performance.now();
    if (nowMs - toldAtMs < PROBLEM_EVERY_MS) return;
    toldAtMs = nowMs;
    // A delivery is begun by whichever request ended before it.
    outOfScope(() => log.warn({ problem: messageOf(problem) }, "traces could not be delivered; they are dropped"));
  };
  const silent = () => {};
  diag.setLogger(
    { error: tell, warn: tell, info: silent, debug: silent, verbose: silent },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
}

/** The SDK tells an error as JSON of all its fields, its stack among them. */
function messageOf(told: string): string {
  let message: unknown;
  try {
    message = (JSON.parse(told) as { readonly message?: unknown } | null)?.message;
  } catch {
    message = undefined; // plain words
  }
  return (typeof message === "string" ? message : told).slice(0, 300);
}
