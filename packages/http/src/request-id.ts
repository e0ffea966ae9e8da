import type { IncomingHttpHeaders } from "node:http";
import { newId } from "@atelier/core";

export const REQUEST_ID_HEADER = "x-atelier-request-id";

/** The caller's X-Request-Id, where it is short and plain enough to log and to send back; one of ours otherwise. */
export function requestIdOf(headers: IncomingHttpHeaders): string {
  const given = headers["x-request-id"];
  return typeof given === "string" && /^[\w.:-]{1,128}$/.test(given) ? given : newId("req");
}
