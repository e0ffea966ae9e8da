import { type Deadline, ServingError } from "@atelier/core";
import type { Conditioning } from "./denoise-job.ts";

/** Token ids of one chunk, special tokens and padding included. */
export type TokenIds = Int32Array;

/** What the text-encode stage needs of a device. */
export interface TextEncoder {
  /**
   * Embeds chunks of one length. Result: for each, [length, width], flat; the arrays belong to the device and hold until
   * the next call.
   */
  encode(rows: readonly TokenIds[]): Promise<readonly Float32Array[]>;
}

/** As many tokens as the encoder takes at once, and how strongly each counts. */
export interface PromptChunk {
  readonly ids: TokenIds;
  readonly weights: Float32Array;
}

/** What the stage needs to read prompts. */
export interface PromptReader {
  /**
   * The chunks of a prompt, one at least.
   * @throws ServingError INVALID_REQUEST naming `field` for weights out of range.
   */
  chunks(prompt: string, field: string): readonly PromptChunk[];
  /** A chunk that says nothing, to bring the shorter of two prompts to the length of the longer. */
  readonly emptyChunk: PromptChunk;
  /** Scales each token's embedding by its weight; [length, width], flat. */
  applyWeights(embedding: Float32Array, weights: Float32Array): Float32Array;
}

/** One model's reader and encoder. */
export interface TextModel {
  readonly reader: PromptReader;
  readonly encoder: TextEncoder;
  /** Names the encoder's weights: embeddings are kept under it. */
  readonly digest: string;
}

/** Those that are open; they come and go, and work is only given for one that is there. */
export type TextModels = Pick<ReadonlyMap<string, TextModel>, "get">;

export interface TextEncodeJob {
  readonly id: string;
  readonly model: string;
  readonly prompt: string;
  /** Undefined where there is no guidance. */
  readonly negativePrompt: string | undefined;
  readonly deadline: Deadline;
}

export interface TextEncoded {
  readonly conditioning: Conditioning;
  /** Chunks that the longer of the two prompts took. */
  readonly promptChunks: number;
}

export type TextOutcome =
  | { readonly job: TextEncodeJob; readonly encoded: TextEncoded; readonly error?: undefined }
  | { readonly job: TextEncodeJob; readonly error: ServingError };

export interface TextEncodeLimits {
  readonly waitingMax: number;
  /** Chunks that one run of the encoder takes; further ones wait for the next. */
  readonly chunksMax: number;
  /** Embedded prompts that are kept. */
  readonly keptMax: number;
}

/** Turns prompts into embeddings, those that wait at one time together. Keeps the embeddings last used. */
export class TextEncodeStage {
  readonly #models: TextModels;
  readonly #limits: TextEncodeLimits;
  readonly #kept = new Map<string, Float32Array>(); // the longest unused first
  readonly #cancelled = new Set<string>();
  #waiting: TextEncodeJob[] = [];

  constructor(models: TextModels, limits: TextEncodeLimits) {
    this.#models = models;
    this.#limits = limits;
  }

  /** @throws ServingError OVERLOADED when the waiting room is full. */
  enqueue(job: TextEncodeJob): void {
    if (this.#waiting.length >= this.#limits.waitingMax) {
      throw new ServingError("OVERLOADED", `${this.#limits.waitingMax} prompts already wait to be encoded`);
    }
    this.#waiting.push(job);
  }

  cancel(id: string): void {
    if (this.#waiting.some((job) => job.id === id)) this.#cancelled.add(id);
  }

  get busy(): boolean {
    return this.#waiting.length > 0;
  }

  /** One turn: everything that waits, each prompt encoded once. */
  async step(): Promise<readonly TextOutcome[]> {
    const jobs = this.#waiting;
    this.#waiting = [];
    const outcomes: TextOutcome[] = [];
    const read: { job: TextEncodeJob; prompts: Prompts }[] = [];
    for (const job of jobs) {
      try {
        read.push({ job, prompts: this.#read(job) });
      } catch (error) {
        if (!(error instanceof ServingError)) throw error;
        outcomes.push({ job, error });
      }
    }
    for (const [model, group] of Map.groupBy(read, ({ job }) => job.model)) {
      outcomes.push(...(await this.#encode(this.#models.get(model)!, group)));
    }
    return outcomes;
  }

  /** Both prompts as chunks, brought to one length. */
  #read({ id, model, prompt, negativePrompt, deadline }: TextEncodeJob): Prompts {
    if (this.#cancelled.delete(id)) throw new ServingError("CANCELLED", "the caller took the request back");
    deadline.check("encoding the prompt");
    const { reader, digest } = this.#models.get(model)!;
    const positive = reader.chunks(prompt, "prompt");
    const negative = negativePrompt === undefined ? undefined : reader.chunks(negativePrompt, "negative_prompt");
    const count = Math.max(positive.length, negative?.length ?? 0);
    const padded = (chunks: readonly PromptChunk[]) =>
      Array.from({ length: count }, (_, i) => chunks[i] ?? reader.emptyChunk);
    return {
      chunkCount: count,
      prompt: { key: `${digest} ${count} ${prompt}`, chunks: padded(positive) },
      negative: negative && { key: `${digest} ${count} ${negativePrompt}`, chunks: padded(negative) },
    };
  }

  async #encode(model: TextModel, group: readonly { job: TextEncodeJob; prompts: Prompts }[]): Promise<TextOutcome[]> {
    const needed = group.flatMap(({ prompts }) => [prompts.prompt, ...(prompts.negative ? [prompts.negative] : [])]);
    let embedded: ReadonlyMap<string, Float32Array>;
    try {
      embedded = await this.#embed(model, needed);
    } catch (error) {
      // The device refused this run; the next may be of other prompts.
      if (!(error instanceof ServingError)) throw error;
      return group.map(({ job }) => ({ job, error }));
    }
    return group.map(({ job, prompts }) => {
      const conditioning = {
        sequenceLength: prompts.prompt.chunks.reduce((sum, { ids }) => sum + ids.length, 0),
        prompt: embedded.get(prompts.prompt.key)!,
        negative: prompts.negative && embedded.get(prompts.negative.key)!,
      };
      return { job, encoded: { conditioning, promptChunks: prompts.chunkCount } };
    });
  }

  async #embed(model: TextModel, needed: readonly ReadPrompt[]): Promise<ReadonlyMap<string, Float32Array>> {
    const found = new Map<string, Float32Array>();
    const missing = new Map<string, ReadPrompt>();
    for (const prompt of needed) {
      const kept = this.#kept.get(prompt.key);
      if (kept === undefined) missing.set(prompt.key, prompt);
      else found.set(prompt.key, kept);
    }
    const chunks = [...missing.values()].flatMap((prompt) => prompt.chunks);
    const embeddings: Float32Array[] = [];
    for (let from = 0; from < chunks.length; from += this.#limits.chunksMax) {
      const some = chunks.slice(from, from + this.#limits.chunksMax);
      const rows = await model.encoder.encode(some.map(({ ids }) => ids));
      embeddings.push(...rows.map((row, i) => model.reader.applyWeights(row, some[i]!.weights).slice()));
    }
    for (const { key, chunks: own } of missing.values()) found.set(key, joined(embeddings.splice(0, own.length)));
    for (const [key, embedding] of found) this.#keep(key, embedding);
    return found;
  }

  #keep(key: string, embedding: Float32Array): void {
    this.#kept.delete(key);
    this.#kept.set(key, embedding);
    if (this.#kept.size > this.#limits.keptMax) this.#kept.delete(this.#kept.keys().next().value!);
  }
}

interface ReadPrompt {
  readonly key: string;
  readonly chunks: readonly PromptChunk[];
}

interface Prompts {
  readonly chunkCount: number;
  readonly prompt: ReadPrompt;
  readonly negative: ReadPrompt | undefined;
}

/** One array over shared memory: it is kept here and read in the denoise thread, with no copy for each request. */
function joined(parts: readonly Float32Array[]): Float32Array {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const whole = new Float32Array(new SharedArrayBuffer(length * Float32Array.BYTES_PER_ELEMENT));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
