import { USE_FIELDS, type UsageRow, type Use } from "./accounts.ts";

export const USAGE_GROUPS = ["tenant", "key", "model", "day"] as const;
export type UsageGroup = (typeof USAGE_GROUPS)[number];

/** Use of everything that has these in common. */
export type UsageLine = Partial<Record<UsageGroup, string>> & Use;

/** Adds up `rows` by what `groups` names, in the order of its values; one line with everything where it names nothing. */
export function groupUsage(rows: readonly UsageRow[], groups: readonly UsageGroup[]): readonly UsageLine[] {
  const lines = new Map<string, UsageLine>();
  for (const row of rows) {
    const of = groups.map((group) => row[group]);
    const key = JSON.stringify(of);
    lines.set(key, {
      ...Object.fromEntries(groups.map((group, i) => [group, of[i]!])),
      ...addUse(lines.get(key), row),
    });
  }
  return [...lines.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, line]) => line);
}

export const NO_USE: Use = { requests: 0, images: 0, cachedImages: 0, deviceMs: 0, costMicros: 0 };

export function addUse(a: Use | undefined, b: Use): Use {
  const sums = USE_FIELDS.map((field) => [field, (a?.[field] ?? 0) + b[field]]);
  return Object.fromEntries(sums) as unknown as Use;
}
