import type { Clock } from "@atelier/core";
import type { Records } from "@atelier/job-queue";
import type { ObjectStore } from "@atelier/object-store";
import { z } from "zod";
import { jobKeys } from "../job.ts";

/** A process that is stopping may be at a submission while the next one starts; none takes so long. */
const OLD_MS = 60 * 60 * 1_000;

const markSchema = z.object({ atMs: z.number() });

/**
 * Finds what killed submissions left. Each writes a record `intake.<job>` before its first chunk and removes it at its
 * end, so that nobody has to look through all objects for those without a job.
 */
export class Leftovers {
  readonly #records: Records;
  readonly #objects: ObjectStore;
  readonly #clock: Clock;
  readonly #own = new Set<string>();

  constructor(world: { readonly records: Records; readonly objects: ObjectStore; readonly clock: Clock }) {
    this.#records = world.records;
    this.#objects = world.objects;
    this.#clock = world.clock;
  }

  async begin(jobId: string): Promise<void> {
    this.#own.add(jobId);
    await this.#records.put(PREFIX + jobId, JSON.stringify({ atMs: this.#clock.nowMs() }));
  }

  /** `settled`: its chunks have a job, or are gone. Otherwise a sweep finds them. */
  async end(jobId: string, { settled }: { readonly settled: boolean }): Promise<void> {
    this.#own.delete(jobId);
    if (settled) await this.#records.remove(PREFIX + jobId);
  }

  /** Gives how many submissions it removed the rest of. @throws STORAGE_UNAVAILABLE. */
  async sweep(): Promise<number> {
    let removed = 0;
    for await (const { key, value } of this.#records.list(PREFIX)) {
      const jobId = key.slice(PREFIX.length);
      if (this.#own.has(jobId) || this.#clock.nowMs() - startedAtMs(value) < OLD_MS) continue;
      if ((await this.#records.get(`jobs.${jobId}`)) === undefined) {
        await this.#objects.removeAll(jobKeys(jobId).all);
        removed++;
      }
      await this.#records.remove(key);
    }
    return removed;
  }
}

const PREFIX = "intake.";

function startedAtMs(value: string): number {
  try {
    return markSchema.parse(JSON.parse(value)).atMs;
  } catch {
    return 0; // damaged: as old as can be
  }
}
