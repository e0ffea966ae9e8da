import { errorResponses } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import type { KeyAdmin } from "../tenants/admin.ts";
import type { TenantDirectory } from "../tenants/directory.ts";
import { NAME, tenantFields } from "../tenants/records.ts";

export interface AdminTenantsOptions {
  readonly admin: KeyAdmin;
  readonly directory: TenantDirectory;
}

/** /v1/admin/tenants: how much each may use. */
export function adminTenantsRoutes(app: GatewayApp, { admin, directory }: AdminTenantsOptions): void {
  const config = { access: "admin", scope: "admin" } as const;
  const show = (id: string) => ({
    ...directory.tenant(id),
    source: directory.tenantSource(id) ?? ("default" as const),
  });

  app.get("/v1/admin/tenants", { config, schema: schemas.list }, async () => ({
    tenants: directory.tenantIds().map(show),
  }));
  app.get("/v1/admin/tenants/:id", { config, schema: schemas.read }, async (request) => show(request.params.id));
  app.put("/v1/admin/tenants/:id", { config, schema: schemas.set }, async (request) => {
    const { id } = request.params;
    await admin.setTenant({ id, ...request.body }, request.caller);
    return show(id);
  });
}

const params = z.strictObject({
  id: z.string().regex(NAME).describe("a name of 1 to 64 letters, digits, dots, dashes or underscores"),
});

const settingsBody = z
  .strictObject({
    requests_per_minute: tenantFields.requests_per_minute.default(null),
    images_per_minute: tenantFields.images_per_minute.default(null),
    concurrent_requests: tenantFields.concurrent_requests.default(null),
    images_per_month: tenantFields.images_per_month.default(null),
    device_seconds_per_month: tenantFields.device_seconds_per_month.default(null),
    price_per_device_hour: tenantFields.price_per_device_hour.default(null),
    weight: tenantFields.weight.default(null),
    models: tenantFields.models.default(null),
    adapters: tenantFields.adapters.default(null),
  })
  .meta({ id: "TenantSettings", description: "What is absent has no limit." });

const tenantReply = z
  .object({
    id: z.string(),
    ...tenantFields,
    source: z
      .enum(["store", "file", "environment", "default"])
      .describe("Where the settings come from; default: nobody set any."),
  })
  .meta({ id: "Tenant", description: "A tenant's limits, price and lists of what it may use; null is no limit." });

const schemas = {
  list: {
    operationId: "listTenants",
    summary: "Every tenant that has settings or keys",
    response: {
      200: z.object({ tenants: z.array(tenantReply) }).meta({ id: "TenantList", description: "By name." }),
      ...errorResponses(401, 403, 500, 503),
    },
  },
  read: {
    operationId: "readTenant",
    summary: "A tenant's settings",
    params,
    response: { 200: tenantReply, ...errorResponses(400, 401, 403, 500, 503) },
  },
  set: {
    operationId: "setTenant",
    summary: "Set a tenant's limits, quotas, price and lists, all of them",
    params,
    body: settingsBody,
    response: { 200: tenantReply, ...errorResponses(400, 401, 403, 409, 413, 415, 500, 503) },
  },
};
