import { type Clock, ServingError } from "@atelier/core";
import type { TraceContext } from "@atelier/telemetry";
import type { GenerationEvent } from "../image-request.ts";
import { StoreUnavailable } from "../shared/shared-store.ts";
import { type GenerationRecord, hasEnded } from "./generation-record.ts";
import type { GenerationStore, StoredRecord } from "./generation-store.ts";

/** Nobody looks more often, and every write is one of the store's. */
const SAVE_INTERVAL_MS = 500;

/** A generation that this gateway sees to: its record as it is now, and what the store has of it. */
export class OwnGeneration {
  record: GenerationRecord;
  /** Resolves when it has ended and was written down, or the store was away. */
  ended: Promise<void> = Promise.resolve();
  /** The span that makes it. */
  trace: TraceContext | undefined;
  /** What has to be written before the record may say that it has ended. */
  beforeEnd: (() => Promise<void>) | undefined;

  readonly #clock: Clock;
  readonly #store: GenerationStore;
  readonly #controller = new AbortController();
  #stored: StoredRecord | undefined;
  /** The store has something older. */
  #changed = true;
  #saving: Promise<void> | undefined;
  #cancelTimer: (() => void) | undefined;
  #known = false;

  constructor(record: GenerationRecord, { clock, store }: { clock: Clock; store: GenerationStore }) {
    this.record = record;
    this.#clock = clock;
    this.#store = store;
  }

  /** Aborted with CANCELLED when it was taken back. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** It has ended, and the store knows. */
  get settled(): boolean {
    return hasEnded(this.record) && !this.#changed;
  }

  cancel(): void {
    this.#controller.abort(new ServingError("CANCELLED", "the generation was taken back"));
  }

  take(event: GenerationEvent): void {
    if (event.type === "preview") return;
    if (event.type === "accepted") {
      const { seed, model, stepsTotal } = event;
      const progress = { stage: "text_encode", stepsDone: 0, stepsTotal, imageIndex: 0 } as const;
      this.#change({ status: "running", seed, model, progress });
    } else {
      const { stage, stepsDone, stepsTotal, imageIndex } = event;
      this.#change({ progress: { stage, stepsDone, stepsTotal, imageIndex } });
    }
  }

  async end(changes: Partial<GenerationRecord>): Promise<void> {
    this.#change(changes);
    this.#cancelTimer?.();
    await this.save();
  }

  /** Writes what has changed. What the store was not there for stays changed. Rejects with bugs only. */
  save(): Promise<void> {
    this.#known = true;
    if (this.#changed) this.#saving ??= this.#saveAll();
    return this.#saving ?? Promise.resolve();
  }

  #change(changes: Partial<GenerationRecord>): void {
    if (hasEnded(this.record)) return;
    this.record = { ...this.record, ...changes };
    this.#changed = true;
    if (!this.#known) return;
    this.#cancelTimer ??= this.#clock.after(SAVE_INTERVAL_MS, () => {
      this.#cancelTimer = undefined;
      void this.save();
    });
  }

  async #saveAll(): Promise<void> {
    try {
      while (this.#changed) {
        this.#changed = false;
        await this.#write(this.record);
      }
    } catch (error) {
      this.#changed = true;
      if (!(error instanceof StoreUnavailable)) throw error;
    } finally {
      this.#saving = undefined; // in the same turn as the last look at what has changed
    }
  }

  async #write(record: GenerationRecord): Promise<void> {
    if (hasEnded(record)) {
      await this.beforeEnd?.();
      this.beforeEnd = undefined;
    }
    if (this.#stored !== undefined) {
      const replaced = await this.#store.replace(this.#stored, record);
      if (replaced !== undefined) {
        this.#stored = replaced;
        return;
      }
      // Ended by one who thought this gateway dead, or lost by the store, or written although no answer came back.
      const there = await this.#store.read(record.id);
      if (there !== undefined && hasEnded(there.record)) {
        this.#stored = there;
        this.record = there.record;
        this.cancel();
        return;
      }
    }
    this.#stored = await this.#store.write(record);
  }
}
