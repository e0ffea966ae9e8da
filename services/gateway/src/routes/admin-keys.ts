import { errorResponses } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import type { IssuedKey, KeyAdmin } from "../tenants/admin.ts";
import type { KnownKey, TenantDirectory } from "../tenants/directory.ts";
import { DEFAULT_TENANT, keyFields, SCOPES } from "../tenants/records.ts";

export interface AdminKeysOptions {
  readonly admin: KeyAdmin;
  readonly directory: TenantDirectory;
}

/** /v1/admin/keys: who may use this service. */
export function adminKeysRoutes(app: GatewayApp, { admin, directory }: AdminKeysOptions): void {
  const config = { access: "admin", scope: "admin" } as const;
  const show = async (known: KnownKey) => keyToJson(known, await directory.lastUsed());
  const issued = async ({ record, secret }: IssuedKey) => ({
    ...(await show({ record, source: "store" })),
    key: secret,
  });

  app.post("/v1/admin/keys", { config, schema: schemas.create }, async (request, reply) =>
    reply.code(201).send(await issued(await admin.create(request.body, request.caller))),
  );
  app.get("/v1/admin/keys", { config, schema: schemas.list }, async () => {
    const used = await directory.lastUsed();
    return { keys: directory.keys().map((known) => keyToJson(known, used)) };
  });
  app.get("/v1/admin/keys/:id", { config, schema: schemas.read }, async (request) =>
    show(admin.find(request.params.id)),
  );
  app.patch("/v1/admin/keys/:id", { config, schema: schemas.change }, async (request) => {
    const record = await admin.change(request.params.id, request.body, request.caller);
    return show({ record, source: "store" });
  });
  app.delete("/v1/admin/keys/:id", { config, schema: schemas.revoke }, async (request, reply) => {
    await admin.revoke(request.params.id, request.caller);
    return reply.code(204).send(null);
  });
  app.post("/v1/admin/keys/:id/rotate", { config, schema: schemas.rotate }, async (request) => {
    const { grace_seconds: graceS } = request.body;
    return issued(await admin.rotate(request.params.id, { graceMs: graceS * 1000 }, request.caller));
  });
}

function keyToJson({ record, source }: KnownKey, used: ReadonlyMap<string, number>): z.infer<typeof keyReply> {
  const usedMs = used.get(record.id);
  return {
    id: record.id,
    name: record.name,
    tenant: record.tenant,
    role: record.role,
    scopes: record.scopes,
    priority: record.priority,
    models: record.models,
    adapters: record.adapters,
    created_at: record.created_at ?? null,
    expires_at: record.expires_at,
    last_used_at: usedMs === undefined ? null : new Date(usedMs).toISOString(),
    previous_until: record.previous?.until ?? null,
    source,
  };
}

const keyReply = z
  .object({
    id: z.string().describe("Public: logs and usage name it."),
    ...keyFields,
    created_at: z.string().nullable(),
    last_used_at: z.string().nullable().describe("Within a minute or so; null: never, as far as is known."),
    previous_until: z.string().nullable().describe("After a rotation: until when the secret before is good."),
    source: z
      .enum(["store", "file", "environment"])
      .describe("Keys of the file and the environment are changed there, not here."),
  })
  .meta({ id: "Key", description: "A key, without its secret, which is not kept." });

const issuedReply = keyReply
  .extend({ key: z.string().describe("What its holder sends. Told this once.") })
  .meta({ id: "IssuedKey", description: "A key with its secret, which is told this once." });

const createBody = z
  .strictObject({
    name: keyFields.name.describe("a text of 1 to 200 characters that says whose it is"),
    tenant: keyFields.tenant.default(DEFAULT_TENANT),
    role: keyFields.role.default("user"),
    scopes: keyFields.scopes.optional().describe(`a list of ${SCOPES.join(", ")}; when absent all that the role may`),
    priority: keyFields.priority
      .default("interactive")
      .describe("one of interactive, standard, bulk: the most urgent that it may ask for"),
    models: keyFields.models.default(null),
    adapters: keyFields.adapters.default(null),
    expires_at: keyFields.expires_at.default(null),
  })
  .meta({ id: "NewKey" });

const changeBody = z
  .strictObject({
    name: keyFields.name.optional(),
    role: keyFields.role.optional(),
    scopes: keyFields.scopes.optional(),
    priority: keyFields.priority.optional(),
    models: keyFields.models.optional(),
    adapters: keyFields.adapters.optional(),
    expires_at: keyFields.expires_at.optional(),
  })
  .meta({ id: "KeyChange", description: "What is absent stays." });

const GRACE_DEFAULT_S = 24 * 3600;
const GRACE_MAX_S = 30 * 24 * 3600;

const rotateBody = z
  .strictObject({
    grace_seconds: z
      .int()
      .min(0)
      .max(GRACE_MAX_S)
      .default(GRACE_DEFAULT_S)
      .describe("How long the secret before stays good; 0 ends it at once."),
  })
  .meta({ id: "KeyRotation" });

const params = z.object({ id: z.string() });
const failures = (...more: number[]) => errorResponses(...[400, 401, 403, 500, 503, ...more].sort());

const schemas = {
  create: {
    operationId: "createKey",
    summary: "Make an API key",
    body: createBody,
    response: { 201: issuedReply, ...failures(409, 413, 415) },
  },
  list: {
    operationId: "listKeys",
    summary: "Every key, without its secret",
    response: {
      200: z.object({ keys: z.array(keyReply) }).meta({ id: "KeyList", description: "Every key that is known." }),
      ...errorResponses(401, 403, 500, 503),
    },
  },
  read: {
    operationId: "readKey",
    summary: "One key, without its secret",
    params,
    response: { 200: keyReply, ...errorResponses(401, 403, 404, 500, 503) },
  },
  change: {
    operationId: "changeKey",
    summary: "Change what a key may do",
    params,
    body: changeBody,
    response: { 200: keyReply, ...failures(404, 409, 413, 415) },
  },
  revoke: {
    operationId: "revokeKey",
    summary: "Revoke a key: it is unknown from then on, and its requests that run are ended",
    params,
    response: { 204: z.null().meta({ description: "It is gone." }), ...errorResponses(401, 403, 404, 409, 500, 503) },
  },
  rotate: {
    operationId: "rotateKey",
    summary: "Give a key a new secret, and the one before a time to end",
    params,
    body: rotateBody,
    response: { 200: issuedReply, ...failures(404, 409, 413, 415) },
  },
};
