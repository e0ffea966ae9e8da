import { AsyncLocalStorage } from "node:async_hooks";
import { NO_SPAN, type Span, type SpanOptions, type TraceContext, type Tracer } from "./span.ts";

/** What every log line of a request says. */
export interface LogFields {
  request_id?: string;
  tenant?: string;
  [name: string]: string | undefined;
}

/** What belongs to a request, wherever its work is done in this process: its lines in the log, and its spans. */
export interface Scope {
  readonly fields: LogFields;
  readonly span: Span;
}

const scopes = new AsyncLocalStorage<Scope>();
/** One to a process, as its standard error is. */
let tracer: Tracer | undefined;

/** Undefined: off. */
export function useTracer(chosen: Tracer | undefined): void {
  tracer = chosen;
}

/** Begins a trace, or goes on with `parent`; NO_SPAN where tracing is off. */
export function startSpan(name: string, options: SpanOptions = {}, parent?: TraceContext): Span {
  return tracer === undefined ? NO_SPAN : tracer.start(name, options, parent);
}

/** The span that this code runs for. */
export function currentSpan(): Span {
  return tracer === undefined ? NO_SPAN : (scopes.getStore()?.span ?? NO_SPAN);
}

/** For exemplars and log lines: undefined unless what runs here is being recorded. */
export function currentTraceId(): string | undefined {
  return currentSpan().traceId;
}

/** Whatever `run` does, and what follows of it, is done for `span`. */
export function inSpan<Result>(span: Span, run: () => Result): Result {
  if (span === NO_SPAN) return run();
  return inScope({ fields: scopes.getStore()?.fields ?? {}, span }, run);
}

/**
 * Runs `run` as a part of its own of what runs here, up to the end of its promise where it gives one; its failure is the
 * span's. Where nothing is recorded it is no more than a call.
 */
export function traced<Result>(name: string, run: (span: Span) => Result, options?: SpanOptions): Result {
  const parent = currentSpan();
  if (!parent.recording) return run(parent);
  const span = parent.child(name, options);
  const failed = (error: unknown): never => {
    span.fail(error);
    span.end();
    throw error;
  };
  let result: Result;
  try {
    result = inSpan(span, () => run(span));
  } catch (error) {
    return failed(error);
  }
  if (!(result instanceof Promise)) {
    span.end();
    return result;
  }
  const ended = (value: unknown) => {
    span.end();
    return value;
  };
  return result.then(ended, failed) as Result;
}

/** Whatever `run` does, and what follows of it, belongs to `scope`. */
export function inScope<Result>(scope: Scope, run: () => Result): Result {
  return scopes.run(scope, run);
}

/** For what goes on after a request that happened to set it off, as a loop that a timer keeps going. */
export function outOfScope<Result>(run: () => Result): Result {
  return scopes.exit(run);
}

/** The name of the request that this code runs for, among all services. */
export function currentRequestId(): string | undefined {
  return scopes.getStore()?.fields.request_id;
}

/** What was learned of the request only now, as its tenant. Nothing outside of a request. */
export function addLogFields(fields: LogFields): void {
  const scope = scopes.getStore();
  if (scope !== undefined) Object.assign(scope.fields, fields);
}

/** A fresh object: whoever logs adds to it. */
export function currentLogFields(): Record<string, string | undefined> {
  const scope = scopes.getStore();
  if (scope === undefined) return {};
  const { traceId } = scope.span;
  return traceId === undefined ? { ...scope.fields } : { ...scope.fields, trace_id: traceId };
}
