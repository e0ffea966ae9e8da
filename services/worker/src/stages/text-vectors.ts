import { type Deadline, invariant, ServingError } from "@atelier/core";
import type { EncodedText, PromptChunk, TextEncodeLimits, TextModel, TextModels, TextTower } from "./text-encode.ts";

export interface TextVectorsJob {
  readonly id: string;
  readonly model: string;
  readonly texts: readonly string[];
  readonly deadline: Deadline;
}

export type TextVectorsOutcome =
  | { readonly id: string; readonly vectors: readonly Float32Array[]; readonly error?: undefined }
  | { readonly id: string; readonly error: ServingError };

/**
 * What texts mean to a model: vectors of length 1 whose inner product says how alike two texts are. From the text side of
 * the bundle's CLIP pair, which was trained for just that; without one from the prompt's own encoder: its embedding of the
 * whole text, or else the last hidden state at the end of the text, which is CLIP's pooled output before its projection.
 *
 * Weights in the text, "(red:1.3)", are read and make no difference. A text of several chunks is the mean of theirs.
 */
export class TextVectorStage {
  readonly #models: TextModels;
  readonly #limits: Pick<TextEncodeLimits, "waitingMax" | "chunksMax">;
  #waiting: TextVectorsJob[] = [];
  readonly #cancelled = new Set<string>();

  constructor(models: TextModels, limits: Pick<TextEncodeLimits, "waitingMax" | "chunksMax">) {
    this.#models = models;
    this.#limits = limits;
  }

  /** @throws ServingError OVERLOADED when the waiting room is full. */
  enqueue(job: TextVectorsJob): void {
    if (this.#waiting.length >= this.#limits.waitingMax) {
      throw new ServingError("OVERLOADED", `${this.#limits.waitingMax} lists of texts already wait to be embedded`);
    }
    this.#waiting.push(job);
  }

  cancel(id: string): void {
    if (this.#waiting.some((job) => job.id === id)) this.#cancelled.add(id);
  }

  get busy(): boolean {
    return this.#waiting.length > 0;
  }

  /** One turn: the list that has waited longest; undefined where none waits. */
  async step(): Promise<TextVectorsOutcome | undefined> {
    const job = this.#waiting.shift();
    if (job === undefined) return undefined;
    const { id, model, texts, deadline } = job;
    try {
      if (this.#cancelled.delete(id)) throw new ServingError("CANCELLED", "the caller took the request back");
      deadline.check("embedding texts");
      return { id, vectors: await this.#embed(this.#models.get(model)!, texts) };
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      return { id, error };
    }
  }

  async #embed(model: TextModel, texts: readonly string[]): Promise<readonly Float32Array[]> {
    const { tower, ofChunk } = wayToVectors(model);
    const chunked = texts.map((text, i) => tower.reader.chunks(text, `texts[${i}]`));
    const chunks = chunked.flat();
    const vectors: Float32Array[] = [];
    for (let from = 0; from < chunks.length; from += this.#limits.chunksMax) {
      const some = chunks.slice(from, from + this.#limits.chunksMax);
      const rows = await tower.encoder.encode(some.map(({ ids }) => ids));
      vectors.push(...rows.map((row, i) => ofChunk(row, some[i]!)));
    }
    return chunked.map(({ length }) => unit(mean(vectors.splice(0, length))));
  }
}

/** The tower to ask, and the vector of what it makes of a chunk; a copy, since the encoder's arrays hold until its next run. */
function wayToVectors({ towers, clipTower }: TextModel) {
  if (clipTower !== undefined) return { tower: clipTower, ofChunk: ({ hidden }: EncodedText) => hidden.slice() };
  const tower = towers.at(-1);
  invariant(tower !== undefined, "a model has a text encoder");
  return {
    tower,
    ofChunk: ({ hidden, pooled }: EncodedText, chunk: PromptChunk) =>
      pooled?.slice() ?? endOfText(hidden, chunk, tower),
  };
}

/** The hidden state of the token that ends the text, which padding follows. `hidden` [tokens, width]. */
function endOfText(hidden: Float32Array, { ids }: PromptChunk, { reader }: TextTower): Float32Array {
  const width = hidden.length / ids.length;
  const end = ids.indexOf(reader.emptyChunk.ids[1]!, 1); // of an empty text: it begins, it ends
  invariant(end !== -1, "every chunk ends");
  return hidden.slice(end * width, (end + 1) * width);
}

function mean(vectors: readonly Float32Array[]): Float32Array {
  const [first] = vectors;
  invariant(first !== undefined, "a mean is of something");
  return first.map((_, i) => vectors.reduce((sum, vector) => sum + vector[i]!, 0) / vectors.length);
}

function unit(vector: Float32Array): Float32Array {
  const length = Math.hypot(...vector);
  if (!(length > 0 && Number.isFinite(length))) {
    throw new ServingError("NUMERIC_FAILURE", `the text encoder gave a vector of length ${length}`);
  }
  return vector.map((x) => x / length);
}
