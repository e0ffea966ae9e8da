import { ServingError } from "@atelier/core";
import { errorResponses } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import { type CacheScope, keeperOf } from "../cache/cache-key.ts";
import type { ExactCache } from "../cache/exact-cache.ts";
import type { PurgeRule } from "../cache/purge-log.ts";
import type { Caller } from "../caller.ts";

export interface AdminCacheOptions {
  /** Undefined where none is kept. */
  readonly cache: Pick<ExactCache, "purge" | "size" | "scope"> | undefined;
}

/** /v1/admin/cache: what is kept, and what is to be dropped. */
export function adminCacheRoutes(app: GatewayApp, { cache }: AdminCacheOptions): void {
  const config = { access: "operator", scope: "admin" } as const;
  const present = () => {
    if (cache !== undefined) return cache;
    throw new ServingError("NOT_FOUND", "no results are kept here: ATELIER_CACHE_SCOPE is off");
  };

  app.get("/v1/admin/cache", { config, schema: schemas.size }, async () => {
    const { memory, redis, purges } = await present().size();
    return {
      memory: { results: memory.results, bytes: memory.bytes, bytes_max: memory.bytesMax },
      redis: redis === undefined ? null : { results: redis.count, bytes: redis.bytes },
      purges,
    };
  });
  app.post("/v1/admin/cache/purge", { config, schema: schemas.purge }, async (request) => {
    const kept = present();
    const { inMemory, inRedis } = await kept.purge(ruleFrom(request.body, request.caller, kept.scope));
    return { in_memory: inMemory, in_redis: inRedis ?? null };
  });
}

/** @throws ServingError INVALID_REQUEST where it names nothing, FORBIDDEN where it reaches beyond the caller's tenant. */
function ruleFrom(body: z.infer<typeof purgeBody>, caller: Caller, scope: CacheScope): PurgeRule {
  const { all, tenant, model, adapter, prompt_prefix: prefix } = body;
  const named = [tenant, model, adapter, prefix].some((part) => part !== undefined);
  if (!named && !all) {
    const message = "nothing is named to purge: model, adapter, tenant, prompt_prefix, or all: true for everything";
    throw new ServingError("INVALID_REQUEST", message, { field: "all" });
  }
  if (named && all) {
    const message = "all is true, but the purge is narrowed by something else as well: leave one of them out";
    throw new ServingError("INVALID_REQUEST", message, { field: "all" });
  }
  const rule = { model, adapter, promptPrefix: prefix?.normalize("NFC") };
  if (caller.role === "admin") {
    return { ...rule, keeper: tenant === undefined ? undefined : keeperOf(tenant, scope) };
  }
  if (tenant !== undefined && tenant !== caller.tenant) {
    const message = `tenant is ${JSON.stringify(tenant)}; this key may purge its own, ${caller.tenant}`;
    throw new ServingError("FORBIDDEN", message, { field: "tenant" });
  }
  if (scope === "shared") {
    throw new ServingError("FORBIDDEN", "tenants share one cache here (ATELIER_CACHE_SCOPE): an admin may purge it");
  }
  return { ...rule, keeper: caller.tenant };
}

const name = z.string().min(1).max(200);

const purgeBody = z
  .strictObject({
    all: z.boolean().default(false).describe("Everything that the key may purge."),
    tenant: name.optional().describe("The caller's own, unless it is an admin."),
    model: name.optional(),
    adapter: name.optional(),
    prompt_prefix: z.string().min(1).max(2_000).optional().describe("What the prompt begins with."),
  })
  .meta({ id: "CachePurge", description: "What to drop: all that every part named here holds of." });

const purged = z
  .object({
    in_memory: z.int().describe("Results that this gateway had at hand; the others drop theirs within two seconds."),
    in_redis: z
      .int()
      .nullable()
      .describe("Results that were deleted from Redis; null: there is none, or it could not be asked. None is served."),
  })
  .meta({ id: "CachePurged" });

const size = z
  .object({
    memory: z.object({ results: z.int(), bytes: z.int(), bytes_max: z.int() }).describe("Of the gateway that answers."),
    redis: z.object({ results: z.int(), bytes: z.int() }).nullable().describe("null: none, or it could not be asked."),
    purges: z.int().describe("Purges that results could still be older than."),
  })
  .meta({ id: "CacheSize" });

const schemas = {
  size: {
    operationId: "readCache",
    summary: "How much is kept",
    response: { 200: size, ...errorResponses(401, 403, 404, 500, 503) },
  },
  purge: {
    operationId: "purgeCache",
    summary: "Drop kept results, at every gateway",
    body: purgeBody,
    response: { 200: purged, ...errorResponses(400, 401, 403, 404, 413, 415, 500, 503) },
  },
};
