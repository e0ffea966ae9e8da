/** What a span says of itself; `undefined` is left out. */
export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>;

/** Where a trace stands, as it crosses processes. Source: W3C Trace Context, section 3. */
export interface TraceContext {
  readonly traceparent: string;
  /** Others' own, passed on untouched. */
  readonly tracestate?: string;
}

export interface SpanOptions {
  readonly kind?: "internal" | "server" | "client" | "producer" | "consumer";
  readonly attributes?: Attributes;
  /** Other spans that it has to do with and that are not its parent. */
  readonly links?: readonly (TraceContext | undefined)[];
  /** Milliseconds since the epoch; absent: now. */
  readonly startMs?: number;
}

/** One piece of work of a trace. Nothing that is called on it throws, or waits. */
export interface Span {
  /** False where nothing is recorded: what costs something to work out need not be. */
  readonly recording: boolean;
  /** 32 hexadecimal digits; undefined where nothing is recorded. */
  readonly traceId: string | undefined;
  /** What the next process goes on from, the decision against recording included; undefined where tracing is off. */
  readonly context: TraceContext | undefined;
  child(name: string, options?: SpanOptions): Span;
  set(attributes: Attributes): void;
  /** Something that happened at one moment of it: `atMs` since the epoch; absent: now. */
  event(name: string, attributes?: Attributes, atMs?: number): void;
  /** More than once is once. */
  link(other: TraceContext | undefined): void;
  /** It failed: with the error's code, never with its text, which may hold what a caller wrote. */
  fail(error: unknown): void;
  /** At `atMs` since the epoch; absent: now. Once; what comes afterwards is dropped. */
  end(atMs?: number): void;
}

/** Where tracing is off. */
export const NO_SPAN: Span = Object.freeze({
  recording: false,
  traceId: undefined,
  context: undefined,
  child: () => NO_SPAN,
  set: () => {},
  event: () => {},
  link: () => {},
  fail: () => {},
  end: () => {},
});

/** A trace that is not recorded, here and wherever it goes on. */
export function unrecorded(context: TraceContext): Span {
  const span: Span = { ...NO_SPAN, context, child: () => span };
  return span;
}

/** Begins traces, or goes on with a caller's. */
export interface Tracer {
  start(name: string, options: SpanOptions, parent: TraceContext | undefined): Span;
}
