import type { ItemSpec } from "../job.ts";
import type { ItemSource } from "../ports.ts";

/** Items that are read ahead of a job in one go; a chunk is a thousand. */
const READ_ITEMS = 500;

/**
 * A job's items as they are asked for, mostly in order: reads ahead, and anew where something behind or far ahead is asked
 * for. Holds a few hundred items.
 */
export class ItemFeed {
  readonly #source: ItemSource;
  readonly #jobId: string;
  #held: readonly ItemSpec[] = [];

  constructor(source: ItemSource, jobId: string) {
    this.#source = source;
    this.#jobId = jobId;
  }

  /** Undefined where it has to be read first. */
  peek(index: number): ItemSpec | undefined {
    const first = this.#held[0];
    return first === undefined ? undefined : this.#held[index - first.index];
  }

  /** Rejects with STORAGE_UNAVAILABLE, or where the job has no such item. */
  async read(index: number): Promise<ItemSpec> {
    const held = this.peek(index);
    if (held !== undefined) return held;
    const read: ItemSpec[] = [];
    for await (const item of this.#source.read(this.#jobId, index)) {
      read.push(item);
      if (read.length === READ_ITEMS) break;
    }
    const [first] = read;
    if (first?.index !== index) throw new Error(`job ${this.#jobId} has no item ${index} in the object store`);
    this.#held = read;
    return first;
  }
}
