import type { ItemSpec, ItemState, JobPriority, JobRecord, JobStatusName } from "./job.ts";

/** Who asks, as the gateway found out. */
export interface JobCaller {
  readonly tenant: string;
  readonly keyId: string | null;
  readonly role: "user" | "operator" | "admin";
  /** The most urgent class that it may ask for. */
  readonly priority: "interactive" | "standard" | "bulk";
  readonly weight: number;
  /** Ids of models, as the gateway checks them; null: all. */
  readonly models: readonly string[] | null;
}

/** What the gateway knows and this service does not: models and their limits, defaults, costs, prices and quotas. */
export interface Gateway {
  /** Fills in and checks drafts of one caller, at most 200 at once, in order; never rejects for a draft's own fault. */
  complete(caller: JobCaller, drafts: readonly ShapeDraft[]): Promise<Completion>;
  /** Books what jobs have used so far, in total for each: sending a total again, or an older one, changes nothing. */
  book(totals: readonly UsageTotal[]): Promise<readonly TenantStanding[]>;
}

/** The fields of a picture that a sheet or a template may set beside its prompts and its seed; absent: the model's default. */
export interface ShapeDraft {
  readonly model?: string;
  readonly width?: number;
  readonly height?: number;
  readonly steps?: number;
  readonly guidance_scale?: number;
  readonly sampler?: string;
  readonly karras_sigmas?: boolean;
  readonly format?: string;
  readonly quality?: number;
}

export interface Completion {
  readonly shapes: readonly (
    | { readonly ok: true; readonly shape: import("./job.ts").ItemShape }
    | { readonly ok: false; readonly code: string; readonly message: string; readonly field: string | null }
  )[];
  readonly pricePerDeviceHour: number;
  readonly currency: string;
  /** What the tenant has left of its month; null: without limit. */
  readonly imagesLeft: number | null;
  readonly deviceMsLeft: number | null;
}

export interface UsageTotal {
  readonly jobId: string;
  readonly tenant: string;
  readonly keyId: string | null;
  readonly model: string;
  readonly images: number;
  readonly deviceMs: number;
}

export interface TenantStanding {
  readonly tenant: string;
  /** What its month is used up of, such as "images_per_month"; null: it may go on. */
  readonly exhausted: string | null;
}

/** All jobs, as the HTTP API and the webhooks see them. The engine implements it. */
export interface Jobs {
  /** Takes a job on: resolves once its record is durable. Its chunks are stored before. @throws CONFLICT if it exists. */
  accept(record: JobRecord): Promise<void>;
  /** Undefined where there is none. Callers check the tenant. */
  get(id: string): JobView | undefined;
  /** Newest first, after the job with id `after`. */
  list(filter: JobFilter): readonly JobView[];
  /** A change of its settings, durable when it resolves. @throws ServingError NOT_FOUND, CONFLICT naming the status. */
  pause(id: string): Promise<JobView>;
  resume(id: string): Promise<JobView>;
  cancel(id: string): Promise<JobView>;
  setPriority(id: string, priority: JobPriority): Promise<JobView>;
  /** Queues its failed items again, or those named; gives how many. */
  retry(id: string, itemIndexes?: readonly number[]): Promise<{ readonly job: JobView; readonly items: number }>;
  /** Cancels it where it still runs, and deletes it with everything it made. */
  remove(id: string): Promise<void>;
  /** States of a job's items by index, for `ITEM_STATES`; a view of the ledger, not a copy. */
  states(id: string): ItemStates | undefined;
  /** Every change, after it is visible through `get`. */
  onChange(listener: (change: JobNews) => void): () => void;
}

export interface ItemStates {
  of(index: number): ItemState;
  /** Of a running item; undefined before its first step. */
  progress(
    index: number,
  ): { readonly stepsDone: number; readonly stepsTotal: number; readonly workerId: string } | undefined;
  /** Of a failed or filtered one. */
  reason(index: number): { readonly code: string; readonly message: string; readonly attempts: number } | undefined;
  /** Indexes in `state`, rising, from `from` on, at most `max`. */
  in(state: ItemState, from: number, max: number): readonly number[];
}

export interface JobFilter {
  readonly tenant?: string;
  readonly status?: JobStatusName;
  readonly after?: string;
  /** Part of its name. */
  readonly name?: string;
  readonly max: number;
}

export interface JobView {
  readonly record: JobRecord;
  readonly status: JobStatusName;
  /** Why none of its items are handed out although nobody paused it, such as "images_per_month"; null: they are. */
  readonly heldFor: string | null;
  readonly counts: Readonly<Record<ItemState, number>>;
  /** Device milliseconds that its pictures took so far, and their price. */
  readonly spentDeviceMs: number;
  readonly spentCost: number;
  /** Pictures a minute over the last minutes; 0 where none ended. */
  readonly itemsPerMinute: number;
  /** Until its end as it goes now; null where nobody can tell or it has ended. */
  readonly etaMs: number | null;
  readonly startedAtMs: number | null;
  readonly endedAtMs: number | null;
  /** The newest event of the log that it counts. */
  readonly sequence: number;
}

export type JobNews =
  | { readonly type: "accepted" | "changed" | "ended" | "removed"; readonly job: JobView }
  | {
      readonly type: "item";
      readonly job: JobView;
      readonly itemIndex: number;
      readonly state: ItemState;
      readonly sequence: number;
    }
  /** At most one each 500 ms for a job. */
  | { readonly type: "progress"; readonly job: JobView };

/** What the sheet and the template came to, read back. */
export interface ItemSource {
  /** Items in order from `from` on, as stored. @throws STORAGE_UNAVAILABLE. */
  read(jobId: string, from: number): AsyncIterable<ItemSpec>;
}
