import type { Logger } from "@atelier/telemetry";
import type { z } from "zod";
import { type KeyRecord, keyRecord, type TenantSettings, tenantSettings } from "./records.ts";

/** Keys as a store gives them back. What is damaged is left out and said: one bad value must not lock everybody out. */
export function readStoredKeys(texts: readonly string[], log: Logger): readonly KeyRecord[] {
  return texts.flatMap((text) => read<KeyRecord>(text, keyRecord, log));
}

export function readStoredTenants(texts: readonly string[], log: Logger): readonly TenantSettings[] {
  return texts.flatMap((text) => read<TenantSettings>(text, tenantSettings, log));
}

/** One record has one text, since the order of its fields is that of what was read or made: changes compare them. */
export function storedText(record: KeyRecord | TenantSettings): string {
  return JSON.stringify(record);
}

function read<T>(text: string, schema: z.ZodType, log: Logger): readonly T[] {
  try {
    const value: unknown = JSON.parse(text);
    if (schema.safeParse(value).success) return [value as T];
  } catch {
    // Said below; the text itself may hold anything and is not quoted.
  }
  log.error("a key or tenant in the store is damaged and is left out");
  return [];
}
