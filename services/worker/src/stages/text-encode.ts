import { type Deadline, invariant, ServingError } from "@atelier/core";
import type { Conditioning } from "./denoise-job.ts";
import { type EmbeddedPrompt, joinEmbedding, zerosLike } from "./embedded-prompt.ts";
import { KeptEmbeddings } from "./kept-embeddings.ts";

/** Token ids of one chunk, special tokens and padding included. */
export type TokenIds = Int32Array;

/** What an encoder makes of one chunk. */
export interface EncodedText {
  /** [length, width], flat. */
  readonly hidden: Float32Array;
  /** [pooled width]: the chunk as a whole; absent where the encoder gives none. */
  readonly pooled?: Float32Array;
}

/** What the text-encode stage needs of a device. */
export interface TextEncoder {
  /** Embeds chunks of one length, in order. The arrays belong to the device and hold until the next call. */
  encode(rows: readonly TokenIds[]): Promise<readonly EncodedText[]>;
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

/** A tokenizer and the encoder that was trained with it. */
export interface TextTower {
  readonly reader: PromptReader;
  readonly encoder: TextEncoder;
}

/** One model's way from text to conditioning. */
export interface TextModel {
  /** One, or SDXL's two: each token's embeddings are joined in this order, and one of them gives the pooled one. */
  readonly towers: readonly TextTower[];
  /** The text side of a CLIP pair, whose hidden output is one vector for each chunk. */
  readonly clipTower?: TextTower | undefined;
  /** An empty negative prompt is nothing but zeros, rather than what the encoders make of an empty text. */
  readonly zeroEmptyNegative: boolean;
  /** Names the tokenizers and the encoders' weights: embeddings are kept under it. */
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
  readonly embeddings: EmbeddingCounts;
}

/** Where a request's embeddings came from, in prompts; zeros count as none. */
export interface EmbeddingCounts {
  /** Kept from before: the encoder did not run. */
  readonly hit: number;
  /** Encoded once, for several that waited together. */
  readonly shared: number;
  readonly miss: number;
}

export type TextOutcome =
  | { readonly job: TextEncodeJob; readonly encoded: TextEncoded; readonly error?: undefined }
  | { readonly job: TextEncodeJob; readonly error: ServingError };

export interface TextEncodeLimits {
  readonly waitingMax: number;
  /** Chunks that one run of the encoder takes; further ones wait for the next. */
  readonly chunksMax: number;
  /** Embedded prompts that are kept, in bytes. */
  readonly keptBytesMax: number;
}

/** Turns prompts into embeddings, those that wait at one time together. Keeps the embeddings last used. */
export class TextEncodeStage {
  readonly #models: TextModels;
  readonly #limits: TextEncodeLimits;
  readonly #kept: KeptEmbeddings;
  readonly #cancelled = new Set<string>();
  #waiting: TextEncodeJob[] = [];

  constructor(models: TextModels, limits: TextEncodeLimits) {
    this.#models = models;
    this.#limits = limits;
    this.#kept = new KeptEmbeddings(limits.keptBytesMax);
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
    const read: ReadJob[] = [];
    for (const job of jobs) {
      try {
        read.push(this.#read(job));
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

  /** Both prompts as every tower's chunks, brought to one length. */
  #read(job: TextEncodeJob): ReadJob {
    const { id, model, prompt, negativePrompt, deadline } = job;
    if (this.#cancelled.delete(id)) throw new ServingError("CANCELLED", "the caller took the request back");
    deadline.check("encoding the prompt");
    const { towers, digest, zeroEmptyNegative } = this.#models.get(model)!;
    const zeroNegative = zeroEmptyNegative && negativePrompt === "";
    const encodedNegative = zeroNegative ? undefined : negativePrompt;

    const positive = towers.map(({ reader }) => reader.chunks(prompt, "prompt"));
    const negative =
      encodedNegative === undefined
        ? undefined
        : towers.map(({ reader }) => reader.chunks(encodedNegative, "negative_prompt"));
    const chunkCount = Math.max(...[...positive, ...(negative ?? [])].map((chunks) => chunks.length));
    const padded = (byTower: readonly (readonly PromptChunk[])[]) =>
      byTower.map((chunks, tower) =>
        Array.from({ length: chunkCount }, (_, i) => chunks[i] ?? towers[tower]!.reader.emptyChunk),
      );
    return {
      job,
      chunkCount,
      prompt: { key: `${digest} ${chunkCount} ${prompt}`, chunks: padded(positive) },
      negative: negative && { key: `${digest} ${chunkCount} ${negativePrompt}`, chunks: padded(negative) },
      zeroNegativeKey: zeroNegative ? `${digest} ${chunkCount}` : undefined,
    };
  }

  async #encode(model: TextModel, group: readonly ReadJob[]): Promise<TextOutcome[]> {
    const needed = group.flatMap(promptsOf);
    const found = new Map<string, EmbeddedPrompt>();
    for (const { key } of needed) {
      const kept = this.#kept.get(key);
      if (kept !== undefined) found.set(key, kept);
    }
    const missing = new Map(needed.filter(({ key }) => !found.has(key)).map((prompt) => [prompt.key, prompt]));
    const seen = new Map<string, keyof EmbeddingCounts>([...found.keys()].map((key) => [key, "hit"]));
    try {
      const embedded = await this.#embed(model, [...missing.values()]);
      for (const [key, embedding] of embedded) {
        found.set(key, embedding);
        this.#kept.keep(key, embedding);
      }
    } catch (error) {
      // The device refused this run; the next may be of other prompts.
      if (!(error instanceof ServingError)) throw error;
      return group.map(({ job }) => ({ job, error }));
    }
    return group.map((read) => {
      const embeddings = { hit: 0, shared: 0, miss: 0 };
      for (const { key } of promptsOf(read)) {
        embeddings[seen.get(key) ?? "miss"] += 1;
        if (!seen.has(key)) seen.set(key, "shared");
      }
      const encoded = { conditioning: this.#conditioning(read, found), promptChunks: read.chunkCount, embeddings };
      return { job: read.job, encoded };
    });
  }

  #conditioning(read: ReadJob, found: ReadonlyMap<string, EmbeddedPrompt>): Conditioning {
    const prompt = found.get(read.prompt.key)!;
    const negative = read.negative === undefined ? this.#zeros(read, prompt) : found.get(read.negative.key)!;
    return {
      sequenceLength: read.prompt.chunks[0]!.reduce((sum, { ids }) => sum + ids.length, 0),
      prompt: prompt.hidden,
      negative: negative?.hidden,
      ...(prompt.pooled && { pooled: { prompt: prompt.pooled, negative: negative?.pooled } }),
    };
  }

  #zeros({ zeroNegativeKey }: ReadJob, like: EmbeddedPrompt): EmbeddedPrompt | undefined {
    if (zeroNegativeKey === undefined) return undefined;
    const kept = this.#kept.get(zeroNegativeKey);
    if (kept !== undefined) return kept;
    const zeros = zerosLike(like);
    this.#kept.keep(zeroNegativeKey, zeros);
    return zeros;
  }

  /** Runs each tower over the chunks of all prompts, so many at a time as the limit allows. */
  async #embed({ towers }: TextModel, prompts: readonly ReadPrompt[]): Promise<ReadonlyMap<string, EmbeddedPrompt>> {
    const byTower: EncodedText[][] = [];
    for (const [tower, { reader, encoder }] of towers.entries()) {
      const chunks = prompts.flatMap((prompt) => prompt.chunks[tower]!);
      const encoded: EncodedText[] = [];
      for (let from = 0; from < chunks.length; from += this.#limits.chunksMax) {
        const some = chunks.slice(from, from + this.#limits.chunksMax);
        const rows = await encoder.encode(some.map(({ ids }) => ids));
        invariant(rows.length === some.length, "one embedding for each chunk");
        // Copied: the encoder's arrays hold until its next run.
        encoded.push(
          ...rows.map(({ hidden, pooled }, i) => ({
            hidden: reader.applyWeights(hidden, some[i]!.weights).slice(),
            ...(pooled && { pooled: pooled.slice() }),
          })),
        );
      }
      byTower.push(encoded);
    }
    return new Map(
      prompts.map(({ key, chunks }) => {
        const own = byTower.map((encoded) => encoded.splice(0, chunks[0]!.length));
        return [
          key,
          joinEmbedding(
            own,
            chunks[0]!.reduce((sum, { ids }) => sum + ids.length, 0),
          ),
        ];
      }),
    );
  }
}

interface ReadPrompt {
  readonly key: string;
  /** By tower, then by place in the prompt; every tower has as many. */
  readonly chunks: readonly (readonly PromptChunk[])[];
}

interface ReadJob {
  readonly job: TextEncodeJob;
  readonly chunkCount: number;
  readonly prompt: ReadPrompt;
  /** Undefined where there is no guidance, or zeros stand in its place. */
  readonly negative: ReadPrompt | undefined;
  readonly zeroNegativeKey: string | undefined;
}

function promptsOf({ prompt, negative }: ReadJob): readonly ReadPrompt[] {
  return negative === undefined ? [prompt] : [prompt, negative];
}
