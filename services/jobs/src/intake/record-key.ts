/** A tenant as part of a record's key, where dots stand between parts: one text for each tenant. */
export function tenantPart(tenant: string): string {
  if (/^[A-Za-z0-9_-]+$/.test(tenant) && !tenant.startsWith(CODED)) return tenant;
  return CODED + Buffer.from(tenant).toString("base64url");
}

const CODED = "b64-";
