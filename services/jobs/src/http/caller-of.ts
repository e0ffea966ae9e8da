import { ServingError } from "@atelier/core";
import type { FastifyRequest } from "fastify";
import type { JobCaller } from "../ports.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** Who asks, as the gateway said; undefined on routes that anybody may ask. */
    jobCaller: JobCaller | undefined;
  }
}

/** Of a route under /v1. */
export function callerOf({ jobCaller }: FastifyRequest): JobCaller {
  if (jobCaller === undefined) throw new ServingError("UNAUTHENTICATED", "the gateway did not say who asks");
  return jobCaller;
}
