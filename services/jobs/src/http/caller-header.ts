import type { IncomingHttpHeaders } from "node:http";
import { ServingError } from "@atelier/core";
import { z } from "zod";
import type { JobCaller } from "../ports.ts";

/** Set by gateways, and by nobody else: base64url of a `JobCaller` as JSON. */
export const CALLER_HEADER = "x-atelier-caller";

const jobCaller = z.strictObject({
  tenant: z.string().min(1),
  keyId: z.string().nullable(),
  role: z.enum(["user", "operator", "admin"]),
  priority: z.enum(["interactive", "standard", "bulk"]),
  weight: z.number().positive(),
  models: z.array(z.string()).nullable(),
});

/** @throws ServingError UNAUTHENTICATED where it is missing or is no caller. */
export function readCaller(headers: IncomingHttpHeaders): JobCaller {
  const text = headers[CALLER_HEADER];
  if (typeof text !== "string") {
    throw new ServingError("UNAUTHENTICATED", `${CALLER_HEADER} is missing: ask a gateway, which says who asks`);
  }
  try {
    return jobCaller.parse(JSON.parse(Buffer.from(text, "base64url").toString()));
  } catch (error) {
    throw new ServingError("UNAUTHENTICATED", `${CALLER_HEADER} is no caller`, { cause: error });
  }
}
