import { z } from "zod";
import type { Accounts } from "../tenants/accounts.ts";
import type { TenantDirectory } from "../tenants/directory.ts";
import { NAME } from "../tenants/records.ts";
import { priceFor, type Tariff } from "../tenants/tariff.ts";
import { limitsOf } from "../tenants/tenant-gate.ts";

const TOTALS_MAX = 1_000;
/** Key ids, models and jobs' ids go into Redis keys and fields, whose parts tabs divide. */
const name = z.string().regex(/^[^\s\0]{1,200}$/);

export const usageBody = z.strictObject({
  totals: z
    .array(
      z.strictObject({
        jobId: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
        tenant: z.string().regex(NAME),
        keyId: name.nullable(),
        model: name,
        images: z.int().min(0),
        deviceMs: z.number().min(0).max(Number.MAX_SAFE_INTEGER),
      }),
    )
    .max(TOTALS_MAX)
    .describe(`a list of at most ${TOTALS_MAX} totals`),
});

export interface BookUsageOptions {
  readonly accounts: Pick<Accounts, "bookTotals" | "month">;
  readonly directory: Pick<TenantDirectory, "tenant">;
  readonly tariff: Tariff;
}

/** Books totals, and says of each tenant among them whether its month is used up. Rejects with StoreUnavailable. */
export async function bookUsage({ totals }: z.infer<typeof usageBody>, options: BookUsageOptions) {
  const { accounts, directory, tariff } = options;
  await accounts.bookTotals(
    totals.map(({ keyId, deviceMs, ...total }) => ({
      ...total,
      key: keyId ?? "-",
      deviceMs: Math.round(deviceMs),
      pricePerDeviceHour: priceFor(directory.tenant(total.tenant), tariff),
    })),
  );
  const tenants = [...new Set(totals.map(({ tenant }) => tenant))];
  return Promise.all(tenants.map(async (tenant) => ({ tenant, exhausted: await exhaustedOf(tenant, options) })));
}

async function exhaustedOf(tenant: string, { accounts, directory }: BookUsageOptions): Promise<string | null> {
  const { imagesPerMonth, deviceMsPerMonth } = limitsOf(directory.tenant(tenant));
  if (imagesPerMonth === undefined && deviceMsPerMonth === undefined) return null;
  const used = await accounts.month(tenant);
  if (imagesPerMonth !== undefined && used.images >= imagesPerMonth) return "images_per_month";
  if (deviceMsPerMonth !== undefined && used.deviceMs >= deviceMsPerMonth) return "device_seconds_per_month";
  return null;
}
