import { type Clock, sha256 } from "@atelier/core";
import type { Records } from "@atelier/job-queue";
import { z } from "zod";
import { tenantPart } from "./record-key.ts";

/** As long as the gateway's other routes keep theirs. */
const KEPT_MS = 24 * 60 * 60 * 1_000;

const keptSchema = z.object({ jobId: z.string(), digest: z.string(), atMs: z.number() });
type KeptKey = z.output<typeof keptSchema>;

/** What is to be done under a key. */
export type KeyedSubmission =
  /** Nobody has used it: the work is the caller's, who ends it. */
  | { readonly type: "first"; readonly work: KeyedWork }
  /** A job was made under it, of a body with this digest. */
  | { readonly type: "used"; readonly jobId: string; readonly digest: string }
  | { readonly type: "in_progress" };

export interface KeyedWork {
  /** Before the job is accepted: once it is, the key belongs to this body and this job. */
  bind(bound: { readonly jobId: string; readonly digest: string }): Promise<void>;
  /** Whatever came of it: a job that was accepted has the key, and otherwise it is free. */
  end(): void;
}

/**
 * Idempotency keys of submissions, each tenant's own: records `idem.<tenant>.<digest of the key>`. A record names its job
 * before that is accepted, and counts only if it was; so a process killed between the two leaves a key that is free, and
 * so does deleting the job. What is at work right now this process knows, which is the only one.
 */
export class IdempotencyRecords {
  readonly #records: Records;
  readonly #clock: Clock;
  readonly #jobExists: (jobId: string) => Promise<boolean>;
  readonly #working = new Set<string>();

  constructor(options: {
    readonly records: Records;
    readonly clock: Clock;
    /** Whether there is a record of a job, also of one that is being deleted. */
    readonly jobExists: (jobId: string) => Promise<boolean>;
  }) {
    this.#records = options.records;
    this.#clock = options.clock;
    this.#jobExists = options.jobExists;
  }

  async enter(tenant: string, key: string): Promise<KeyedSubmission> {
    const record = `idem.${tenantPart(tenant)}.${sha256(key).slice("sha256:".length)}`;
    if (this.#working.has(record)) return { type: "in_progress" };
    this.#working.add(record);
    try {
      const kept = readKept(await this.#records.get(record).then((found) => found?.value));
      if (kept !== undefined && this.#clock.nowMs() - kept.atMs < KEPT_MS && (await this.#jobExists(kept.jobId))) {
        this.#working.delete(record);
        return { type: "used", jobId: kept.jobId, digest: kept.digest };
      }
    } catch (error) {
      this.#working.delete(record);
      throw error;
    }
    return { type: "first", work: this.#work(record) };
  }

  #work(record: string): KeyedWork {
    return {
      bind: async ({ jobId, digest }) => {
        const kept: KeptKey = { jobId, digest, atMs: this.#clock.nowMs() };
        await this.#records.put(record, JSON.stringify(kept));
      },
      end: () => void this.#working.delete(record),
    };
  }

  /** Removes what is older than a key is kept. */
  async sweep(): Promise<void> {
    for await (const { key, value } of this.#records.list("idem.")) {
      const kept = readKept(value);
      if (kept === undefined || this.#clock.nowMs() - kept.atMs >= KEPT_MS) await this.#records.remove(key);
    }
  }
}

/** Undefined where it is damaged: as if it were not there. */
function readKept(value: string | undefined): KeptKey | undefined {
  if (value === undefined) return undefined;
  try {
    return keptSchema.safeParse(JSON.parse(value)).data;
  } catch {
    return undefined;
  }
}
