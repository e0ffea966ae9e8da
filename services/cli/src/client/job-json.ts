/** Bulk jobs as the HTTP API shows them, as far as the command line reads them. */

export interface JobJson {
  readonly id: string;
  readonly name: string;
  readonly status: "queued" | "running" | "paused" | "done" | "cancelled";
  /** Why none of it is made although nobody paused it. */
  readonly held_for: string | null;
  readonly priority: string;
  readonly item_count: number;
  readonly counts: Readonly<Record<"queued" | "running" | "done" | "failed" | "cancelled" | "filtered", number>>;
  readonly items_per_minute: number;
  readonly eta_ms: number | null;
  readonly spent: { readonly device_seconds: number; readonly cost: number; readonly currency: string };
  readonly predicted: { readonly device_seconds: number; readonly cost: number; readonly currency: string };
  readonly skipped_count: number;
  readonly created_at: string;
  readonly ended_at: string | null;
}

export interface ItemJson {
  readonly index: number;
  readonly row: number;
  readonly sku: string | null;
  readonly file: string;
  readonly state: string;
  /** Why it failed or is held back. */
  readonly error: { readonly code: string; readonly message: string; readonly attempts: number } | null;
}

/** What a dry run says. */
export interface PreviewJson {
  readonly item_count: number;
  readonly predicted: { readonly device_seconds: number; readonly cost: number; readonly currency: string };
  readonly eta_ms: number | null;
  /** Whether it would be accepted with what is left of the tenant's month. */
  readonly fits: boolean;
  readonly notes: readonly string[];
  readonly skipped_count: number;
  readonly skipped: readonly { readonly line: number; readonly message: string }[];
  readonly items: readonly {
    readonly row: number;
    readonly file: string;
    readonly prompt: string;
    readonly seed: number;
    readonly preset: string | null;
  }[];
}

/** A line of a manifest. */
export interface ManifestLine {
  readonly index: number;
  readonly state: string;
  readonly file: string;
  readonly sha256: string | null;
  readonly bytes: number | null;
}
