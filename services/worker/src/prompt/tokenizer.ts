import { ServingError } from "@atelier/core";
import { type BytePairMerger, bytePairMerger } from "./byte-pair-merger.ts";
import { byteCharacters, clipNormalize, clipPieces } from "./clip-text.ts";
import type { WeightedText } from "./parse-prompt.ts";
import { type AddedToken, readTokenizerFiles, type TokenizerFiles } from "./tokenizer-files.ts";

/** Positions of a CLIP text encoder; two of them are taken by the start and the end token. */
export const CHUNK_TOKENS = 77;
const CHUNK_TEXT_TOKENS = CHUNK_TOKENS - 2;

/**
 * Chunks of one prompt. The U-Net attends to every token of every chunk at each step, so a prompt costs device time
 * and memory by its length; 16 chunks are 1,200 tokens, some 900 English words.
 */
export const CHUNKS_MAX = 16;

/** How far a chunk may be cut short so that a phrase stays whole, in tokens. As in AUTOMATIC1111's webui. */
const BREAK_WITHIN = 20;

/** One filling of the text encoder: start token, up to 75 tokens of text, end token, padding. */
export interface PromptChunk {
  /** [77] */
  readonly ids: Int32Array;
  /** [77]; 1 for the start, end and padding tokens. */
  readonly weights: Float32Array;
}

/** A prompt as the text encoder takes it. Plain data: it may cross threads. */
export interface PromptTokens {
  /** At least one. Encoded one by one; their embeddings are joined along the token axis. */
  readonly chunks: readonly PromptChunk[];
}

interface Token {
  readonly id: number;
  readonly weight: number;
  /** How good a place to break lies after this token: 2 after a comma, 1 after a word, 0 inside a word. */
  readonly breakAfter: 0 | 1 | 2;
}

/** Makes the ids that transformers' CLIPTokenizer makes, and lays them out in chunks. */
export class PromptTokenizer {
  readonly #merger: BytePairMerger;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #unkId: number;
  readonly #bosId: number;
  readonly #eosId: number;
  readonly #padId: number;
  readonly #addedRaw: AddedTokens;
  readonly #addedNormalized: AddedTokens;
  /** The highest id that can come out: it has to have a row in the text encoder's embedding. */
  readonly idMax: number;

  constructor(files: TokenizerFiles) {
    const { vocabulary, special, added } = files;
    this.#merger = bytePairMerger(files);
    this.#ids = new Map([...Object.entries(vocabulary), ...added.map(({ content, id }) => [content, id] as const)]);
    this.#unkId = this.#ids.get(special.unk)!;
    this.#bosId = this.#ids.get(special.bos)!;
    this.#eosId = this.#ids.get(special.eos)!;
    this.#padId = this.#ids.get(special.pad)!;
    this.#addedRaw = new AddedTokens(added.filter(({ normalized }) => !normalized));
    this.#addedNormalized = new AddedTokens(added.filter(({ normalized }) => normalized));
    this.idMax = [...this.#ids.values()].reduce((max, id) => Math.max(max, id), 0);
  }

  /** @throws ServingError INVALID_BUNDLE naming the file of the tokenizer's folder that is at fault. */
  static async load(tokenizerDir: string): Promise<PromptTokenizer> {
    return new PromptTokenizer(await readTokenizerFiles(tokenizerDir));
  }

  /** The ids of `text` alone: no start or end token, no padding, no limit. */
  ids(text: string): number[] {
    return this.#tokens({ text, weight: 1 }).map(({ id }) => id);
  }

  /**
   * Lays a prompt out in chunks. Nothing is dropped: what does not fit into one chunk goes into the next. Where a full
   * chunk has a comma (or another mark that ends a phrase, in any script) among its last 20 tokens, it ends there; else
   * at the end of a word within as many; else, as in a long run of Chinese without marks, where it is full.
   *
   * Source of the comma rule: AUTOMATIC1111's stable-diffusion-webui, modules/sd_hijack_clip.py, `tokenize_line`.
   *
   * @throws ServingError INVALID_REQUEST naming `field` when the prompt needs more than 16 chunks.
   */
  tokenize(prompt: readonly WeightedText[], { field = "prompt" }: { field?: string } = {}): PromptTokens {
    let waiting = prompt.flatMap((stretch) => this.#tokens(stretch));
    const count = waiting.length;
    const chunks: PromptChunk[] = [];
    do {
      if (chunks.length === CHUNKS_MAX) throw tooLong(field, count);
      const length = chunkLength(waiting);
      chunks.push(this.#chunk(waiting.slice(0, length)));
      waiting = waiting.slice(length);
    } while (waiting.length > 0);
    return { chunks };
  }

  #chunk(tokens: readonly Token[]): PromptChunk {
    const ids = new Int32Array(CHUNK_TOKENS).fill(this.#padId);
    const weights = new Float32Array(CHUNK_TOKENS).fill(1);
    ids[0] = this.#bosId;
    tokens.forEach(({ id, weight }, i) => {
      ids[i + 1] = id;
      weights[i + 1] = weight;
    });
    ids[tokens.length + 1] = this.#eosId;
    return { ids, weights };
  }

  #tokens({ text, weight }: WeightedText): Token[] {
    return this.#addedRaw.split(text).flatMap((raw) => {
      if (typeof raw !== "string") return [{ id: raw.id, weight, breakAfter: 1 as const }];
      return this.#addedNormalized.split(clipNormalize(raw)).flatMap((section) => {
        if (typeof section !== "string") return [{ id: section.id, weight, breakAfter: 1 as const }];
        return clipPieces(section).flatMap((piece) => this.#tokensOfPiece(piece, weight));
      });
    });
  }

  #tokensOfPiece(piece: string, weight: number): Token[] {
    const after = ENDS_PHRASE.test(piece) ? 2 : 1;
    const texts = this.#merger.encode([byteCharacters(piece)]);
    return texts.map((text, i) => ({
      id: this.#ids.get(text) ?? this.#unkId,
      weight,
      breakAfter: i === texts.length - 1 ? after : 0,
    }));
  }
}

/** Commas and stops, in Latin, Chinese, Japanese and Arabic scripts. */
const ENDS_PHRASE = /[,;.!?，、；。！？،؛]$/u;

/** How many of `tokens` go into the next chunk. */
function chunkLength(tokens: readonly Token[]): number {
  if (tokens.length <= CHUNK_TEXT_TOKENS) return tokens.length;
  const earliest = CHUNK_TEXT_TOKENS - BREAK_WITHIN;
  for (const quality of [2, 1] as const) {
    const last = tokens.slice(earliest, CHUNK_TEXT_TOKENS).findLastIndex(({ breakAfter }) => breakAfter >= quality);
    if (last !== -1) return earliest + last + 1;
  }
  return CHUNK_TEXT_TOKENS;
}

function tooLong(field: string, tokens: number): ServingError {
  const message = `${field} is ${tokens} tokens long; at most ${CHUNKS_MAX} chunks of ${CHUNK_TEXT_TOKENS} fit`;
  return new ServingError("INVALID_REQUEST", message, { field });
}

/** Texts that are one token each, found before anything else is: leftmost first, and of those the longest. */
class AddedTokens {
  readonly #tokens: ReadonlyMap<string, AddedToken>;
  readonly #pattern: RegExp | undefined;

  constructor(tokens: readonly AddedToken[]) {
    this.#tokens = new Map(tokens.map((token) => [token.content, token]));
    const longestFirst = [...this.#tokens.keys()].sort((a, b) => b.length - a.length).map(escaped);
    this.#pattern = longestFirst.length === 0 ? undefined : new RegExp(`(${longestFirst.join("|")})`, "u");
  }

  split(text: string): (string | AddedToken)[] {
    if (this.#pattern === undefined) return [text];
    return text.split(this.#pattern).map((part, i) => (i % 2 === 1 ? this.#tokens.get(part)! : part));
  }
}

function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}
