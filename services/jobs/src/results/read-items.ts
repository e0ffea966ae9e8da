import { CHUNK_ITEMS, type ItemSpec } from "../job.ts";
import type { ItemSource } from "../ports.ts";

/** The items at `indexes`, which rise. Reads on where the next one is near, and else anew from its chunk on. */
export async function readItems(
  source: ItemSource,
  jobId: string,
  indexes: readonly number[],
): Promise<readonly ItemSpec[]> {
  const found: ItemSpec[] = [];
  while (found.length < indexes.length) {
    const from = indexes[found.length]!;
    const before = found.length;
    for await (const item of source.read(jobId, from)) {
      const wanted = indexes[found.length]!;
      if (item.index === wanted) found.push(item);
      const next = indexes[found.length];
      if (next === undefined || next - item.index > CHUNK_ITEMS) break;
    }
    if (found.length === before) return found; // there are fewer than was said
  }
  return found;
}
