/** What a caller may do, from the least to the most: each role may all that those before it may. */
export const ROLES = ["user", "operator", "admin"] as const;
export type Role = (typeof ROLES)[number];

/** From the most urgent to the least. */
export const PRIORITY_CLASSES = ["interactive", "standard", "bulk"] as const;
export type PriorityClass = (typeof PRIORITY_CLASSES)[number];

/** Who asks, once authenticated. */
export interface Caller {
  readonly tenant: string;
  /** Undefined where no keys are configured. */
  readonly keyId: string | undefined;
  /** Which of the key's secrets it used, by its hash; absent where no keys are configured. */
  readonly keyHash?: string | undefined;
  readonly role: Role;
  /** Parts of the API that its key is for; absent: all. */
  readonly scopes?: ReadonlySet<string> | undefined;
  /** The most urgent class that it may ask for, and the one that its requests have when they name none. */
  readonly priority: PriorityClass;
  /** Its tenant's share of a busy device against that of others; 1 where it is absent. */
  readonly weight?: number | undefined;
  /** Ids of the models that it may use; undefined: all. */
  readonly models: ReadonlySet<string> | undefined;
  /** Names of the adapters that it may use; undefined: all. */
  readonly adapters: ReadonlySet<string> | undefined;
}

/** Everybody, where no keys are configured: the gateway then listens on loopback only. */
export const LOCAL_CALLER: Caller = {
  tenant: "local",
  keyId: undefined,
  role: "admin",
  priority: "interactive",
  models: undefined,
  adapters: undefined,
};
