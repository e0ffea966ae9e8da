import { AsyncLocalStorage } from "node:async_hooks";
import { NO_SPAN, type Span, type SpanOptions, type TraceContext, type Tracer } from "./span.ts";

/** What every log line of a request says. */
export interface LogFields {
  request_id?: string;
  tenant?: string;
  [name: string]: string | undefined;
}

/** What belongs to a request, wherever its work is done in this process. */
interface Scope {
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
  return scopes.run({ fields: scopes.getStore()?.fields ?? {}, span }, run);
}

/** Runs `run` as a part of its own of what runs here; its failure is the span's. */
export async function traced<Result>(
  name: string,
  run: (span: Span) => Result | Promise<Result>,
  options?: SpanOptions,
): Promise<Awaited<Result>> {
  const parent = currentSpan();
  if (!parent.recording) return await run(parent);
  const span = parent.child(name, options);
  try {
    return await inSpan(span, () => run(span));
  } catch (error) {
    span.fail(error);
    throw error;
  } finally {
    span.end();
  }
}

/** Every line logged by `run`, and by what follows of it, says `fields`; a request's own scope ends with its work. */
export function withLogFields<Result>(fields: LogFields, span: Span, run: () => Result): Result {
  return scopes.run({ fields, span }, run);
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
