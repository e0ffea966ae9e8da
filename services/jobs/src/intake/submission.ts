import type { Readable } from "node:stream";
import type { ItemShape, ItemSpec, JobRecord } from "../job.ts";
import type { JobCaller } from "../ports.ts";
import type { NamedPreset } from "./options.ts";

/** A sheet and what to do with it, as an HTTP route has them. */
export interface Submission {
  readonly caller: JobCaller;
  /**
   * Of the body, with its parameters: text/csv, text/tab-separated-values, application/x-ndjson, application/jsonl or
   * application/json; of a form, that of its file. `format` among the options wins, since browsers name CSV as they like.
   */
  readonly contentType: string;
  /**
   * The sheet itself, of a form the file alone. Left as it is where a refusal comes before its end, so that it can be told:
   * whoever submitted it reads on or closes it.
   */
  readonly body: Readable;
  /** Bytes of the body, where a header said so. */
  readonly contentLength?: number | undefined;
  /** The form's field `job` parsed, or `optionsOfQuery`. A body of application/json has its own, which win. */
  readonly options: unknown;
  /** The header as `readIdempotencyKey` gives it. Heeded for everything but a dry run. */
  readonly idempotencyKey?: string | undefined;
  readonly dryRun: boolean;
  /** Aborted with a ServingError when the caller went away. */
  readonly signal: AbortSignal;
}

/** What came of a submission that was not refused; a refusal is a ServingError. */
export type Submitted =
  | { readonly type: "accepted"; readonly record: JobRecord }
  /** The same was submitted under this Idempotency-Key before: nothing was done now. */
  | { readonly type: "replayed"; readonly jobId: string }
  /** Something else was submitted under this key: 422. */
  | { readonly type: "key_of_another" }
  /** The same key is at work right now: 409, worth another try a little later. */
  | { readonly type: "in_progress" }
  | { readonly type: "preview"; readonly preview: JobPreview };

/** What a submission would come to. Nothing of it is stored. */
export interface JobPreview {
  readonly name: string;
  readonly rows: number;
  readonly items: number;
  /** The first ones, in order; their seeds are those of the job only where a base seed was given. */
  readonly first: readonly (ItemSpec & { readonly shapeOf: ItemShape })[];
  readonly predictedDeviceMs: number;
  readonly predictedCost: number;
  readonly currency: string;
  /** Of the tenant's month, before this job; null: without limit. */
  readonly imagesLeft: number | null;
  readonly deviceMsLeft: number | null;
  /** Whether it would be accepted with what is left. */
  readonly fits: boolean;
  readonly skipped: readonly { readonly line: number; readonly message: string }[];
  readonly skippedCount: number;
  /** What is allowed but may not be meant, such as empty cells in a prompt. */
  readonly notes: readonly string[];
}

export interface CloneRequest {
  readonly caller: JobCaller;
  readonly record: JobRecord;
  /** The request's body. */
  readonly settings: unknown;
  readonly signal: AbortSignal;
}

export interface IntakeLimits {
  /** ATELIER_JOB_UPLOAD_MAX */
  readonly uploadBytesMax: number;
  /** ATELIER_JOB_ITEMS_MAX */
  readonly itemsMax: number;
}

/** Takes sheets in. `Intake` implements it. */
export interface JobIntake {
  /** @throws ServingError of everything that is refused: the sheet, the options, the quota, a store that is away. */
  submit(submission: Submission): Promise<Submitted>;
  /** A new job of the same items. Callers check the tenant. @throws ServingError. */
  clone(request: CloneRequest): Promise<JobRecord>;
  readonly presets: TenantPresets;
}

/** Presets by name, each tenant's own. */
export interface TenantPresets {
  /** By name. */
  list(tenant: string): Promise<readonly NamedPreset[]>;
  /** @throws NOT_FOUND. */
  get(tenant: string, name: string): Promise<NamedPreset>;
  /** Makes or replaces it. @throws INVALID_REQUEST naming the field. */
  put(tenant: string, name: string, body: unknown): Promise<NamedPreset>;
  /** @throws NOT_FOUND. */
  remove(tenant: string, name: string): Promise<void>;
}
