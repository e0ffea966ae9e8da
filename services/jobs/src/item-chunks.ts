import { createInterface } from "node:readline";
import type { ObjectStore } from "@atelier/object-store";
import { CHUNK_ITEMS, type ItemSpec, jobKeys } from "./job.ts";
import type { ItemSource } from "./ports.ts";

/** Items as the intake wrote them: a thousand lines to a chunk. Holds one chunk's stream at a time. */
export class ItemChunks implements ItemSource {
  readonly #objects: Pick<ObjectStore, "get">;

  constructor(objects: Pick<ObjectStore, "get">) {
    this.#objects = objects;
  }

  async *read(jobId: string, from: number): AsyncIterable<ItemSpec> {
    for (let chunk = Math.floor(from / CHUNK_ITEMS); ; chunk++) {
      const object = await this.#objects.get(jobKeys(jobId).chunk(chunk));
      if (object === undefined) return;
      try {
        let index = chunk * CHUNK_ITEMS;
        for await (const line of createInterface({ input: object.body, crlfDelay: Number.POSITIVE_INFINITY })) {
          if (index++ >= from) yield JSON.parse(line) as ItemSpec;
        }
      } finally {
        object.body.destroy();
      }
    }
  }
}
