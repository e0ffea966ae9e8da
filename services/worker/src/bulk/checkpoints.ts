import type { ObjectStore } from "@atelier/object-store";
import { type DenoiseState, DenoiseStateSchema, type WorkItem } from "@atelier/proto";
import { fromBinary, toBinary } from "@bufbuild/protobuf";

/** Larger than any latent of ours with its history. */
const BYTES_MAX = 256 * 2 ** 20;

/** Where pictures stand whose worker left, for the next one to go on from. */
export class Checkpoints {
  readonly #store: Pick<ObjectStore, "put" | "get" | "remove">;

  constructor(store: Pick<ObjectStore, "put" | "get" | "remove">) {
    this.#store = store;
  }

  /** Undefined where there is none, or none that can be read: the picture is begun anew. Rejects as the store does. */
  async read(item: WorkItem): Promise<DenoiseState | undefined> {
    const object = await this.#store.get(keyOf(item));
    if (object === undefined) return undefined;
    if (object.bytes > BYTES_MAX) {
      object.body.destroy();
      return undefined;
    }
    const parts: Uint8Array[] = [];
    for await (const part of object.body) parts.push(part as Uint8Array);
    try {
      return fromBinary(DenoiseStateSchema, Buffer.concat(parts));
    } catch {
      return undefined; // what else could be wrong with it, whoever resumes from it finds
    }
  }

  async write(item: WorkItem, state: DenoiseState): Promise<void> {
    await this.#store.put(keyOf(item), toBinary(DenoiseStateSchema, state));
  }

  async remove(item: WorkItem): Promise<void> {
    await this.#store.remove(keyOf(item));
  }
}

function keyOf({ jobId, itemIndex }: WorkItem): string {
  return `jobs/${jobId}/checkpoints/${itemIndex}.state`;
}
