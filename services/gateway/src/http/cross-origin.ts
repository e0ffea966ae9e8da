import cors from "@fastify/cors";
import type { FastifyInstance } from "fastify";

/** Browsers ask before a call and keep the answer for an hour. */
const PREFLIGHT_KEPT_S = 3_600;

/**
 * Lets pages of `origins` call from a browser ("*": all pages). Keys travel in a header and never in a cookie, so no
 * credentials of the browser's own are allowed. Without origins nothing is added, and browsers refuse by themselves.
 */
export async function allowOrigins(app: FastifyInstance, origins: readonly string[]): Promise<void> {
  if (origins.length === 0) return;
  await app.register(cors, {
    origin: origins.includes("*") ? "*" : [...origins],
    methods: ["GET", "POST", "PUT", "PATCH", "DELETE"],
    // What a page may read of an answer beside its body: all of it, as for any other caller.
    exposedHeaders: EXPOSED,
    maxAge: PREFLIGHT_KEPT_S,
    strictPreflight: false,
  });
}

const EXPOSED = [
  "allow",
  "content-disposition",
  "idempotency-replayed",
  "location",
  "preference-applied",
  "ratelimit",
  "ratelimit-policy",
  "retry-after",
  "server-timing",
  "www-authenticate",
  "x-atelier-cache",
  "x-atelier-ignored",
  "x-atelier-receipt",
  "x-atelier-request-id",
  "x-atelier-seed",
  "x-atelier-simulated",
  "x-request-id",
];
