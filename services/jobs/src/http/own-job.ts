import { ServingError } from "@atelier/core";
import { z } from "zod";
import type { JobCaller, Jobs, JobView } from "../ports.ts";

/** Of a route about one job. */
export const jobParams = z.strictObject({
  id: z
    .string()
    .regex(/^[\w-]{1,64}$/)
    .describe("a job's id"),
});

/**
 * The job, where the caller may know of it: its tenant's, and all of them for operators. That of another is not there.
 *
 * @throws ServingError NOT_FOUND.
 */
export function ownJob(jobs: Pick<Jobs, "get">, id: string, caller: JobCaller): JobView {
  const job = jobs.get(id);
  if (job !== undefined && mayKnow(caller, job.record.tenant)) return job;
  throw new ServingError("NOT_FOUND", `there is no job ${id}`, { field: "id" });
}

/** Whose jobs a list is of; undefined: everybody's. @throws ServingError FORBIDDEN. */
export function listedTenant(asked: string | undefined, caller: JobCaller): string | undefined {
  if (asked === undefined) return caller.tenant;
  if (asked !== caller.tenant && caller.role === "user") {
    const message = `tenant is ${JSON.stringify(asked)}; this key may ask for its own, ${caller.tenant}`;
    throw new ServingError("FORBIDDEN", message, { field: "tenant" });
  }
  return asked === "*" ? undefined : asked;
}

const mayKnow = (caller: JobCaller, tenant: string): boolean => caller.tenant === tenant || caller.role !== "user";
