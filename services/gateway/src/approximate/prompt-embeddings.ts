import { type Clock, ServingError } from "@atelier/core";
import { LRUCache } from "lru-cache";
import { PRIORITY_CLASSES } from "../caller.ts";
import type { WorkerClient } from "../fleet/worker-client.ts";
import type { WorkerView } from "../fleet/worker-view.ts";

export interface PromptEmbeddingsOptions {
  readonly clock: Clock;
  readonly fleet: {
    views(): readonly WorkerView[];
    clientAt(address: string): Pick<WorkerClient, "embedText"> | undefined;
  };
}

export interface Text {
  readonly model: string;
  readonly modelDigest: string;
  readonly prompt: string;
}

/** A request waits so long for what may save it some of its steps. */
const TIMEOUT_MS = 200;
/** At 768 floats each 12 MB. */
const KEPT_MAX = 4_096;
/** After a failure nobody waits for another one. */
const PAUSE_MS = 5_000;

/** What prompts mean to a model, as its workers say; none where they cannot say it soon. */
export class PromptEmbeddings {
  readonly #options: PromptEmbeddingsOptions;
  readonly #kept = new LRUCache<string, Float32Array>({ max: KEPT_MAX });
  readonly #asked = new Map<string, Promise<Float32Array | undefined>>();
  /** By model: until when nobody is asked. */
  readonly #pausedUntilMs = new Map<string, number>();

  constructor(options: PromptEmbeddingsOptions) {
    this.#options = options;
  }

  /** A vector of length 1. Never rejects. */
  of(text: Text): Promise<Float32Array | undefined> {
    const key = `${text.modelDigest}\n${text.prompt}`;
    const kept = this.#kept.get(key);
    if (kept !== undefined) return Promise.resolve(kept);
    const asked = this.#asked.get(key) ?? this.#ask(key, text).finally(() => this.#asked.delete(key));
    this.#asked.set(key, asked);
    return asked;
  }

  async #ask(key: string, { model, modelDigest, prompt }: Text): Promise<Float32Array | undefined> {
    const { clock, fleet } = this.#options;
    if (clock.nowMs() < (this.#pausedUntilMs.get(model) ?? 0)) return undefined;
    const worker = leastBusy(fleet.views().filter((view) => holds(view, model, modelDigest)));
    const client = worker && fleet.clientAt(worker.address);
    if (client === undefined) return undefined;
    try {
      const [embedding] = await client.embedText(model, [prompt], { timeoutMs: TIMEOUT_MS });
      if (embedding === undefined || embedding.length === 0 || !embedding.every(Number.isFinite)) return undefined;
      this.#kept.set(key, embedding);
      return embedding;
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      // What is wrong with one prompt says nothing of the others.
      if (error.retryable || error.code === "DEADLINE_EXCEEDED" || error.code === "INTERNAL") {
        this.#pausedUntilMs.set(model, clock.nowMs() + PAUSE_MS);
      }
      return undefined;
    }
  }
}

function holds({ ready, models }: WorkerView, model: string, modelDigest: string): boolean {
  const held = models.get(model);
  return ready && held?.digest === modelDigest && held.place.status === "resident";
}

function leastBusy(workers: readonly WorkerView[]): WorkerView | undefined {
  const busy = ({ backlogMs }: WorkerView) => PRIORITY_CLASSES.reduce((sum, each) => sum + backlogMs[each], 0);
  return workers.toSorted((a, b) => busy(a) - busy(b))[0];
}
