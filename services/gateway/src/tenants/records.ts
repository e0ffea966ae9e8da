import { API_KEY_HASH } from "@atelier/core";
import { z } from "zod";
import { PRIORITY_CLASSES, ROLES, type Role } from "../caller.ts";

/** What a key is good for. Roles say how far it reaches; scopes narrow it down to what its program needs. */
export const SCOPES = ["generate", "jobs", "models", "usage", "admin"] as const;
export type Scope = (typeof SCOPES)[number];

export const DEFAULT_TENANT = "default";

/** Names go into Redis keys, log lines, metric labels and file names. */
export const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

const moment = z.iso.datetime({ offset: true }).describe("a time in ISO 8601, such as 2027-01-31T00:00:00Z");
const name = z.string().regex(NAME).describe("a name of 1 to 64 letters, digits, dots, dashes or underscores");
const hash = z.string().regex(API_KEY_HASH).describe('"sha256:" and 64 hexadecimal digits');
const text = z.string().min(1).max(200).describe("a text of 1 to 200 characters");
const names = z.array(text).max(1000).describe("a list of at most 1000 names");
const scopes = z
  .array(z.enum(SCOPES))
  .min(1)
  .describe(`a list of ${SCOPES.join(", ")}`);

/** The parts of a key that whoever makes it chooses; null is no end, or all that its tenant may use. */
export const keyFields = {
  name: text,
  tenant: name,
  role: z.enum(ROLES),
  scopes,
  priority: z.enum(PRIORITY_CLASSES),
  models: names.nullable(),
  adapters: names.nullable(),
  expires_at: moment.nullable(),
};

/** A key as it is kept, in files and stores alike: its secret is in nobody's hands but its holder's. */
export const keyRecord = z
  .strictObject({
    id: z
      .string()
      .regex(/^[0-9a-z]{12}$/)
      .describe("12 lower-case letters and digits"),
    hash,
    name: keyFields.name,
    tenant: keyFields.tenant.default(DEFAULT_TENANT),
    role: keyFields.role.default("user"),
    scopes: keyFields.scopes.optional(),
    priority: keyFields.priority.default("interactive"),
    models: keyFields.models.default(null),
    adapters: keyFields.adapters.default(null),
    created_at: moment.optional(),
    expires_at: keyFields.expires_at.default(null),
    /** After a rotation: the secret before, and until when it is good. */
    previous: z.strictObject({ hash, until: moment }).optional(),
  })
  .transform((read) => ({ ...read, scopes: read.scopes ?? defaultScopes(read.role) }));

export type KeyRecord = z.output<typeof keyRecord>;

/** A user's key makes pictures and reads its own; who administers may all. */
export function defaultScopes(role: Role): Scope[] {
  return role === "user" ? SCOPES.filter((scope) => scope !== "admin") : [...SCOPES];
}

const limit = z.int().min(1).max(1_000_000_000).nullable();

/** A tenant's settings; null is no limit, the gateway's own price, or everything there is. */
export const tenantFields = {
  requests_per_minute: limit,
  images_per_minute: limit,
  concurrent_requests: limit,
  images_per_month: limit,
  device_seconds_per_month: limit,
  price_per_device_hour: z.number().min(0).max(1_000_000).nullable(),
  /** Its share of a busy device against that of others of the same class; null is 1. */
  weight: z.number().min(0.1).max(100).nullable(),
  models: names.nullable(),
  adapters: names.nullable(),
};

export const tenantSettings = z.strictObject({
  id: name,
  requests_per_minute: tenantFields.requests_per_minute.default(null),
  images_per_minute: tenantFields.images_per_minute.default(null),
  concurrent_requests: tenantFields.concurrent_requests.default(null),
  images_per_month: tenantFields.images_per_month.default(null),
  device_seconds_per_month: tenantFields.device_seconds_per_month.default(null),
  price_per_device_hour: tenantFields.price_per_device_hour.default(null),
  weight: tenantFields.weight.default(null),
  models: tenantFields.models.default(null),
  adapters: tenantFields.adapters.default(null),
});

export type TenantSettings = z.output<typeof tenantSettings>;

/** Of a tenant that nobody set anything for. */
export function defaultSettings(id: string): TenantSettings {
  return tenantSettings.parse({ id });
}

/** Keys and tenants of one source. */
export interface Holdings {
  readonly keys: readonly KeyRecord[];
  readonly tenants: readonly TenantSettings[];
}

const holdings = z.strictObject({
  keys: z.array(keyRecord).default([]),
  tenants: z.array(tenantSettings).default([]),
});

/**
 * Reads a list of keys, or an object of `keys` and `tenants`, both in JSON.
 *
 * @throws Error naming the entry and the field at fault, and never a hash.
 */
export function readHoldings(json: string): Holdings {
  const value = parseJson(json);
  const read = holdings.safeParse(Array.isArray(value) ? { keys: value } : value);
  if (!read.success) throw new Error(explain(read.error));
  for (const kind of ["keys", "tenants"] as const) {
    const ids = read.data[kind].map(({ id }) => id);
    const twice = ids.find((id, i) => ids.indexOf(id) !== i);
    if (twice !== undefined) throw new Error(`${kind} has ${JSON.stringify(twice)} twice`);
  }
  return read.data;
}

function parseJson(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    // The parser's own words quote what it read, which may be a secret in the wrong place.
    throw new Error("it is not JSON");
  }
}

function explain({ issues }: z.ZodError): string {
  const { path, code, message, ...issue } = issues[0]!;
  const where = path.length === 0 ? "the whole" : path.join(".");
  if (code === "unrecognized_keys") return `${where} has the unknown field ${(issue as { keys: string[] }).keys[0]}`;
  return `${where}: ${message}`;
}
