import type { WorkItem } from "@atelier/proto";
import { NO_SPAN, type Span, startSpan, type TraceContext } from "@atelier/telemetry";
import type { JobRecord } from "./job.ts";

/** A trace of a hundred thousand pictures is none that anybody could read. */
const ITEMS_IN_JOB_TRACE = 100;

/** An item on its way to the queue. */
export interface Published {
  readonly job: { readonly record: JobRecord };
  readonly work: WorkItem;
}

/**
 * Sees items off: each carries where its trace stands from here on. The first of a job go on with the trace that submitted
 * it; those behind them begin traces of their own, one for each publication, which are linked to it.
 */
export function publishing(batch: readonly Published[], start = startSpan): (failure?: unknown) => void {
  const spans = new Map<string, Span>();
  for (const { job, work } of batch) {
    const { id, tenant, origin } = job.record;
    const joins = work.itemIndex < ITEMS_IN_JOB_TRACE;
    const key = `${id} ${joins}`;
    const span = spans.get(key) ?? begin({ id, tenant, trace: origin?.trace, joins }, start);
    if (span === NO_SPAN) return () => {}; // tracing is off
    spans.set(key, span);
    work.traceparent = span.context?.traceparent ?? "";
    work.tracestate = span.context?.tracestate ?? "";
  }
  return (failure) => {
    for (const [key, span] of spans) {
      const items = batch.filter(({ job, work }) => key === `${job.record.id} ${work.itemIndex < ITEMS_IN_JOB_TRACE}`);
      span.set({ "messaging.batch.message_count": items.length });
      if (failure !== undefined) span.fail(failure);
      span.end();
    }
  };
}

interface Beginning {
  readonly id: string;
  readonly tenant: string;
  readonly trace: TraceContext | undefined;
  readonly joins: boolean;
}

/** Source: OpenTelemetry, "Semantic conventions for messaging spans". */
function begin({ id, tenant, trace, joins }: Beginning, start: typeof startSpan): Span {
  const attributes = {
    "messaging.operation.type": "send",
    "messaging.destination.name": "items",
    "atelier.job.id": id,
    "atelier.tenant": tenant,
  };
  return start("job.publish", { kind: "producer", attributes, links: joins ? [] : [trace] }, joins ? trace : undefined);
}
