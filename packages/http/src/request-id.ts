import type { IncomingHttpHeaders } from "node:http";
import { newId } from "@atelier/core";

/** Ours, and the name that proxies, SDKs and other services know. Both are on every answer. */
export const REQUEST_ID_HEADER = "x-atelier-request-id";
export const COMMON_REQUEST_ID_HEADER = "x-request-id";

/** The caller's X-Request-Id, where it is short and plain enough to log and to send back; one of ours otherwise. */
export function requestIdOf(headers: IncomingHttpHeaders): string {
  const given = headers[COMMON_REQUEST_ID_HEADER];
  return typeof given === "string" && /^[\w.:-]{1,128}$/.test(given) ? given : newId("req");
}

/** As every answer says it. */
export function requestIdHeaders(id: string): Readonly<Record<string, string>> {
  return { [REQUEST_ID_HEADER]: id, [COMMON_REQUEST_ID_HEADER]: id };
}
