import { createHash, timingSafeEqual } from "node:crypto";
import { ServingError } from "@atelier/core";
import type { FastifyRequest } from "fastify";
import { isLoopback } from "./loopback.ts";

/**
 * Lets services of ours in and nobody else: whoever has `token` (ATELIER_INTERNAL_TOKEN); where none is configured, what
 * runs on this machine and speaks to this address itself. A browser never is: no page has any business here.
 *
 * @throws ServingError UNAUTHENTICATED or FORBIDDEN.
 */
export function checkInternalCaller({ headers, socket }: FastifyRequest, token: string | undefined): void {
  if (headers.origin !== undefined || headers["sec-fetch-site"] !== undefined) {
    throw new ServingError("FORBIDDEN", "this is for services of Atelier's own, and not for browsers");
  }
  if (token !== undefined) {
    const given = /^Bearer (.*)$/.exec(headers.authorization ?? "")?.[1] ?? "";
    if (sameText(given, token)) return;
    throw new ServingError(
      "UNAUTHENTICATED",
      "this is for services of Atelier's own, which have ATELIER_INTERNAL_TOKEN",
    );
  }
  // A proxy on this machine comes by loopback too; it says for whom, or under which name it was asked.
  const passedOn = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"].some(
    (name) => name in headers,
  );
  if (!passedOn && isLoopback(socket.remoteAddress ?? "") && isLoopback(hostOf(headers.host))) return;
  throw new ServingError(
    "FORBIDDEN",
    "this is for services of Atelier's own; from another machine they need ATELIER_INTERNAL_TOKEN",
  );
}

/** Without its port. */
const hostOf = (header = ""): string => header.replace(/:\d+$/, "");

/** In a time that says nothing of where they differ. */
function sameText(a: string, b: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}
