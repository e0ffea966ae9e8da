import type { TraceContext } from "./span.ts";

export interface ParentSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly sampled: boolean;
}

/**
 * Undefined for what is none. Of a version after ours only the part that ours has is read.
 *
 * Source: W3C Trace Context, sections 3.2 and 4.3.
 */
export function parseTraceparent(text: string): ParentSpan | undefined {
  const match = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/.exec(text);
  if (match === null) return undefined;
  const [, version, traceId, spanId, flags, rest] = match as unknown as [
    string,
    string,
    string,
    string,
    string,
    string?,
  ];
  if (version === "ff" || (version === "00" && rest !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

export function traceparentOf({ traceId, spanId, sampled }: ParentSpan): string {
  return `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`;
}

/** More than the standard asks anybody to carry. */
const TRACESTATE_CHARS_MAX = 512;

/** What a request's headers say; undefined where they say nothing, or nothing valid. */
export function traceContextOf(headers: {
  readonly [name: string]: string | readonly string[] | undefined;
}): TraceContext | undefined {
  const { traceparent, tracestate } = headers;
  if (typeof traceparent !== "string" || parseTraceparent(traceparent) === undefined) return undefined;
  const states = typeof tracestate === "string" ? tracestate : tracestate?.join(",");
  const kept =
    states !== undefined && states !== "" && states.length <= TRACESTATE_CHARS_MAX && /^[\x20-\x7e]*$/.test(states);
  return { traceparent, ...(kept && { tracestate: states }) };
}
