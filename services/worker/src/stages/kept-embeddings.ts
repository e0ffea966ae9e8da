import { bytesOf, type EmbeddedPrompt } from "./embedded-prompt.ts";

/** The embeddings last used, up to so many bytes of them. One that is larger than all of it is not kept. */
export class KeptEmbeddings {
  readonly #bytesMax: number;
  readonly #kept = new Map<string, EmbeddedPrompt>(); // the longest unused first
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get(key: string): EmbeddedPrompt | undefined {
    const kept = this.#kept.get(key);
    if (kept === undefined) return undefined;
    this.#kept.delete(key);
    this.#kept.set(key, kept); // the newest now
    return kept;
  }

  /** What was not used for the longest time makes room for it. */
  keep(key: string, embedding: EmbeddedPrompt): void {
    this.#drop(key);
    const bytes = bytesOf(embedding);
    if (bytes > this.#bytesMax) return;
    while (this.#bytes + bytes > this.#bytesMax) this.#drop(this.#kept.keys().next().value!);
    this.#kept.set(key, embedding);
    this.#bytes += bytes;
  }

  get bytes(): number {
    return this.#bytes;
  }

  #drop(key: string): void {
    const kept = this.#kept.get(key);
    if (kept === undefined) return;
    this.#kept.delete(key);
    this.#bytes -= bytesOf(kept);
  }
}
