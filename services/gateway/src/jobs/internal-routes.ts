import { checkInternalCaller } from "@atelier/http";
import type { GatewayApp } from "../app.ts";
import { orUnavailable } from "../tenants/or-unavailable.ts";
import { type BookUsageOptions, bookUsage, usageBody } from "./book-usage.ts";
import { type CompleteDraftsOptions, completeBody, completeDrafts } from "./complete-drafts.ts";

export interface InternalRoutesOptions extends BookUsageOptions, CompleteDraftsOptions {
  readonly accounts: BookUsageOptions["accounts"] & CompleteDraftsOptions["accounts"];
  readonly internalToken: string | undefined;
}

/** What the jobs service asks of a gateway: to complete and price drafts, and to book what jobs used. */
export function internalRoutes(app: GatewayApp, options: InternalRoutesOptions): void {
  const common = {
    config: { access: "public" as const }, // no key is asked for: checkInternalCaller decides
    onRequest: async (request: Parameters<typeof checkInternalCaller>[0]) =>
      checkInternalCaller(request, options.internalToken),
  };
  app.post("/internal/v1/complete", { ...common, schema: { hide: true, body: completeBody } }, ({ body }) =>
    orUnavailable(() => completeDrafts(body, options)),
  );
  app.post("/internal/v1/usage", { ...common, schema: { hide: true, body: usageBody } }, ({ body }) =>
    orUnavailable(() => bookUsage(body, options)),
  );
}
