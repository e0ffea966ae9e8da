import type { FastifyInstance } from "fastify";

/**
 * What every answer says to browsers. Fixed, since nothing here is a page: what comes from the API is data, which no
 * browser is to run, frame or guess the type of.
 * Source: OWASP REST Security Cheat Sheet, "Security headers".
 */
const HEADERS = {
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
};

/** Half a year; without subdomains, which are not this gateway's to speak for. */
const HTTPS_ONLY = { "strict-transport-security": "max-age=15552000" };

/** Sets them on every answer, failures included; a route may set its own over them. */
export function setSecurityHeaders(app: FastifyInstance, { https }: { https: boolean }): void {
  const headers = https ? { ...HEADERS, ...HTTPS_ONLY } : HEADERS;
  app.addHook("onRequest", async (_request, reply) => {
    reply.headers(headers);
  });
}
