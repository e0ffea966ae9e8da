import { ServingError } from "@atelier/core";
import type { ItemShape, ItemSpec, JobRecord } from "../job.ts";
import { EXTENSIONS } from "./file-names.ts";
import { itemSeed } from "./item-seed.ts";

const BATCH_ITEMS = 1_000;

export interface ClonedItems {
  readonly items: AsyncIterable<readonly ItemSpec[]>;
  /** Of all, once they were read. */
  readonly predictedDeviceMs: number;
}

/** A job's items as another job's: other shapes, and other seeds where `seed` is given. */
export function clonedItems(
  source: AsyncIterable<ItemSpec>,
  job: {
    readonly record: JobRecord;
    /** Of the record's shapes among the new ones. */
    readonly places: readonly number[];
    readonly shapes: readonly ItemShape[];
    readonly seed: number | undefined;
  },
): ClonedItems {
  const { record, places, shapes, seed } = job;
  const counted = { predictedDeviceMs: 0 };
  async function* items(): AsyncIterable<readonly ItemSpec[]> {
    let batch: ItemSpec[] = [];
    let count = 0;
    for await (const item of source) {
      const place = places[item.shape]!;
      const shape = shapes[place]!;
      counted.predictedDeviceMs += shape.predictedDeviceMs;
      count++;
      batch.push({
        ...item,
        shape: place,
        file: item.file.replace(/\.[a-z]+$/, `.${EXTENSIONS[shape.format]}`),
        ...(seed !== undefined && { seed: itemSeed(seed, item.index) }),
      });
      if (batch.length < BATCH_ITEMS) continue;
      yield batch;
      batch = [];
    }
    if (batch.length > 0) yield batch;
    if (count === record.itemCount) return;
    throw new ServingError("CONFLICT", `${record.id} is being deleted: only ${count} of its items are left`);
  }
  return {
    items: items(),
    get predictedDeviceMs() {
      return counted.predictedDeviceMs;
    },
  };
}
