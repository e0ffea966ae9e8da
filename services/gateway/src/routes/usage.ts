import { type Clock, ServingError } from "@atelier/core";
import { errorResponses } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import { type Accounts, dayOf, monthOf, type UsageRow, type Use } from "../tenants/accounts.ts";
import { orUnavailable } from "../tenants/or-unavailable.ts";
import { NAME } from "../tenants/records.ts";
import type { Tariff } from "../tenants/tariff.ts";
import { addUse, groupUsage, NO_USE, USAGE_GROUPS, type UsageGroup } from "../tenants/usage-report.ts";

export interface UsageRouteOptions {
  readonly accounts: Accounts;
  readonly tariff: Tariff;
  readonly clock: Clock;
}

const DAYS_MAX = 366;
const DAY_MS = 86_400_000;
const ALL_TENANTS = "*";

/** GET /v1/usage: what the caller's tenant used, and what it cost. */
export function usageRoute(app: GatewayApp, { accounts, tariff, clock }: UsageRouteOptions): void {
  app.get("/v1/usage", { schema, config: { scope: "usage" } }, async (request) => {
    const { caller, query } = request;
    const tenant = query.tenant ?? caller.tenant;
    if (tenant !== caller.tenant && caller.role !== "admin") {
      const message = `tenant is ${JSON.stringify(tenant)}; this key may ask for its own, ${caller.tenant}`;
      throw new ServingError("FORBIDDEN", message, { field: "tenant" });
    }
    const today = dayOf(clock.nowMs());
    const { from = `${monthOf(clock.nowMs())}-01`, to = today } = query;
    checkRange({ from, to });
    const groups = readGroups(query.group_by);
    const rows = await orUnavailable(async () => {
      const tenants = tenant === ALL_TENANTS ? await accounts.tenants() : [tenant];
      const found: UsageRow[] = [];
      // One tenant after another: each is a question for every day.
      for (const one of tenants) found.push(...(await accounts.usage({ tenant: one, from, to })));
      return found;
    });
    return {
      tenant,
      from,
      to,
      currency: tariff.currency,
      total: useToJson(rows.reduce<Use>((sum: Use, row: UsageRow) => addUse(sum, row), NO_USE)),
      rows: groupUsage(rows, groups).map(({ tenant: t, key, model, day, ...use }) => ({
        ...(t !== undefined && { tenant: t }),
        ...(key !== undefined && { key }),
        ...(model !== undefined && { model }),
        ...(day !== undefined && { day }),
        ...useToJson(use),
      })),
    };
  });
}

function checkRange({ from, to }: { from: string; to: string }): void {
  const days = (Date.parse(to) - Date.parse(from)) / DAY_MS + 1;
  if (days < 1) throw invalid("to", `to is ${to}, which is before from (${from})`);
  if (days > DAYS_MAX) throw invalid("from", `from ${from} to ${to} are ${days} days; at most ${DAYS_MAX} at once`);
}

function readGroups(text: string | undefined): readonly UsageGroup[] {
  const names = text?.split(",").map((name) => name.trim()) ?? [];
  const wrong = names.find((name) => !USAGE_GROUPS.includes(name as UsageGroup));
  if (wrong === undefined) return [...new Set(names as UsageGroup[])];
  throw invalid(
    "group_by",
    `group_by has ${JSON.stringify(wrong.slice(0, 60))}; it must be some of ${USAGE_GROUPS.join(", ")}, separated by commas`,
  );
}

const invalid = (field: string, message: string) => new ServingError("INVALID_REQUEST", message, { field });

function useToJson({ requests, images, cachedImages, deviceMs, costMicros }: Use): z.infer<typeof use> {
  const cost = costMicros / 1e6;
  return {
    requests,
    images,
    cached_images: cachedImages,
    device_seconds: deviceMs / 1000,
    cost,
    cost_per_image: images === 0 ? null : cost / images,
  };
}

const use = z
  .object({
    requests: z.int().describe("Answered with pictures."),
    images: z.int().describe("Delivered, cached ones included."),
    cached_images: z.int().describe("Those of them that nothing was made for."),
    device_seconds: z.number().describe("Of a whole device."),
    cost: z.number().describe("At the price of the moment when each was made."),
    cost_per_image: z.number().nullable().describe("null where there is no picture."),
  })
  .meta({ id: "Use" });

const day = z.iso.date().describe("a day as 2026-11-23");

const schema = {
  operationId: "usage",
  summary: "What a tenant used, and what it cost",
  querystring: z.strictObject({
    from: day.optional().describe("the first day in UTC, as 2026-11-23; the first of this month when absent"),
    to: day.optional().describe("the last day in UTC, as 2026-11-23; today when absent"),
    group_by: z.string().optional().describe("some of tenant, key, model, day, separated by commas"),
    tenant: z
      .union([z.string().regex(NAME), z.literal(ALL_TENANTS)])
      .optional()
      .describe("a tenant's name, or * for all; the caller's own when absent. Another's is for role admin"),
  }),
  response: {
    200: z
      .object({
        tenant: z.string(),
        from: z.string(),
        to: z.string(),
        currency: z.string(),
        total: use,
        rows: z.array(
          z
            .object({
              tenant: z.string().optional(),
              key: z.string().optional(),
              model: z.string().optional(),
              day: z.string().optional(),
            })
            .extend(use.shape),
        ),
      })
      .meta({ id: "Usage", description: "All of it, and by what group_by names." }),
    ...errorResponses(400, 401, 403, 500, 503),
  },
};
