import { Metadata } from "@grpc/grpc-js";

/** What a call carries beside its message: which request it is part of, and where its trace stands. */
export interface CallContext {
  /** The caller's, or the gateway's own; not the call's: each attempt is another call. */
  readonly requestId?: string | undefined;
  /** W3C Trace Context. */
  readonly trace?: { readonly traceparent: string; readonly tracestate?: string | undefined } | undefined;
}

export const REQUEST_ID_METADATA = "x-request-id";

export function metadataOf({ requestId, trace }: CallContext): Metadata {
  const metadata = new Metadata();
  if (requestId !== undefined) metadata.set(REQUEST_ID_METADATA, requestId);
  if (trace !== undefined) metadata.set("traceparent", trace.traceparent);
  if (trace?.tracestate !== undefined) metadata.set("tracestate", trace.tracestate);
  return metadata;
}

/** As headers are read: text values only, of names that may come once. A request id that is not plain is left out. */
export function headersOf(metadata: Metadata): Readonly<Record<string, string | undefined>> {
  const text = (name: string) => {
    const [value] = metadata.get(name);
    return typeof value === "string" ? value : undefined;
  };
  const requestId = text(REQUEST_ID_METADATA);
  return {
    [REQUEST_ID_METADATA]: requestId !== undefined && PLAIN_ID.test(requestId) ? requestId : undefined,
    traceparent: text("traceparent"),
    tracestate: text("tracestate"),
  };
}

/** Short and plain enough to log and to send on. */
const PLAIN_ID = /^[\w.:-]{1,128}$/;
