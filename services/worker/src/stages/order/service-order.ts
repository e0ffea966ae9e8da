/** The most urgent first. */
export const PRIORITY_CLASSES = ["interactive", "standard", "bulk"] as const;

export type PriorityClass = (typeof PRIORITY_CLASSES)[number];

/** Whose turn it is, when more is asked for than the device can do at once. */
export interface ServiceOrder {
  readonly priorityClass: PriorityClass;
  /** Tenants of one class share the device by their weights. "" is a tenant like any other. */
  readonly tenant: string;
  /** The tenant's share against that of others; over 0. */
  readonly weight?: number;
  /** When the caller would like the images, by the system clock: earliest first within a tenant. No limit. */
  readonly finishAtMs: number | undefined;
}

export const DEFAULT_ORDER: ServiceOrder = { priorityClass: "standard", tenant: "", weight: 1, finishAtMs: undefined };

/** 0 is the most urgent. */
export function urgencyRank(priorityClass: PriorityClass): number {
  return PRIORITY_CLASSES.indexOf(priorityClass);
}
