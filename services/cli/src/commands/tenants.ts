import { GatewayClient, type Server } from "../client/gateway-client.ts";
import { type Column, table } from "../terminal/table.ts";

/** As the API has them; null is no limit. */
export interface TenantSettings {
  readonly requests_per_minute: number | null;
  readonly images_per_minute: number | null;
  readonly concurrent_requests: number | null;
  readonly images_per_month: number | null;
  readonly device_seconds_per_month: number | null;
  readonly price_per_device_hour: number | null;
  readonly weight: number | null;
  readonly models: readonly string[] | null;
  readonly adapters: readonly string[] | null;
}

type TenantEntry = TenantSettings & { readonly id: string; readonly source: string };

export async function listTenants({ server, json }: { server: Server; json: boolean }): Promise<void> {
  const { tenants } = (await client(server).call("GET", "/v1/admin/tenants")) as { tenants: readonly TenantEntry[] };
  if (json) console.log(JSON.stringify(tenants, undefined, 2));
  else console.log(tenants.length === 0 ? "There are no tenants · 没有租户" : table(COLUMNS, tenants));
}

export interface SetTenantOptions {
  readonly server: Server;
  readonly id: string;
  readonly changes: Partial<TenantSettings>;
  readonly json: boolean;
}

/** Changes what is given and leaves the rest as it is. */
export async function setTenant({ server, id, changes, json }: SetTenantOptions): Promise<void> {
  const path = `/v1/admin/tenants/${encodeURIComponent(id)}`;
  const { id: _id, source: _source, ...settings } = (await client(server).call("GET", path)) as TenantEntry;
  const set = (await client(server).call("PUT", path, { ...settings, ...changes })) as TenantEntry;
  console.log(json ? JSON.stringify(set, undefined, 2) : table(COLUMNS, [set]));
}

const number = (value: number | null) => (value === null ? "-" : String(value));
const list = (value: readonly string[] | null) => (value === null ? "all" : value.join(",") || "none");

const COLUMNS: readonly Column<TenantEntry>[] = [
  { title: "TENANT", of: ({ id }) => id },
  { title: "REQUESTS/MIN", of: (tenant) => number(tenant.requests_per_minute) },
  { title: "IMAGES/MIN", of: (tenant) => number(tenant.images_per_minute) },
  { title: "AT ONCE", of: (tenant) => number(tenant.concurrent_requests) },
  { title: "IMAGES/MONTH", of: (tenant) => number(tenant.images_per_month) },
  { title: "DEVICE S/MONTH", of: (tenant) => number(tenant.device_seconds_per_month) },
  { title: "PRICE/HOUR", of: (tenant) => number(tenant.price_per_device_hour) },
  { title: "WEIGHT", of: (tenant) => number(tenant.weight) },
  { title: "MODELS", of: (tenant) => list(tenant.models) },
  { title: "ADAPTERS", of: (tenant) => list(tenant.adapters) },
  { title: "FROM", of: ({ source }) => source },
];

const client = (server: Server) => new GatewayClient(server, new AbortController().signal);
